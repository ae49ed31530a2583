"""Radio maps: the first stage of a latent diffusion model, a VAE with a patch discriminator (`trainable: radio`)."""
