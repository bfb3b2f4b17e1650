"""Generation with the stylized autoencoders beside other ways of running the same networks."""
