"""What callbacks remember from round to round, by their class."""

from fedgh.federation.loop import memories, recall


class Best:
    def __init__(self, best=0.0):
        self.best = best

    def memory(self):
        return {"best": self.best}

    def recall(self, memory):
        self.best = memory.get("best", -1.0)


def test_two_callbacks_of_one_class_remember_each_their_own():
    remembered = memories([Best(1.0), object(), Best(2.0), Best(3.0)])
    assert remembered == {"Best": {"best": 1.0}, "Best 2": {"best": 2.0}, "Best 3": {"best": 3.0}}
    again = [Best(), Best(), object(), Best(), Best()]
    recall(again, remembered)
    assert [callback.best for callback in again if isinstance(callback, Best)] == [1.0, 2.0, 3.0, -1.0]
