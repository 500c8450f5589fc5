"""How the models that come with the package were made: photographs, training, scores."""
