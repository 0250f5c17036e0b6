"""The caption model: crops in, probabilities out."""
