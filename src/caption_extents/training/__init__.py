"""Making training data, training the caption model, and judging it."""
