"""The learner: data, model, loss and optimizer tied to the loop, and the verbs a person calls."""

from treadle.learner.learner import Learner, load_learner

__all__ = ["Learner", "load_learner"]
