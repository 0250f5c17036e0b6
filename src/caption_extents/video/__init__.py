"""Opening a video, placing its samples, decoding and cropping."""
