"""Training data: blur kernels, JPEG, the degradation pipeline and the photo data sets that use them."""
