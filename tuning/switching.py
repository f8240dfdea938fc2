"""Task switching: several tuned tasks beside one base model, one of them put on at a time (Hu et al. 2021, section 1).

Every task's modules are made once and adopt the base's own tensors. To switch is to set references, back to the base's
and on to the next task's: nothing is copied, added or subtracted, so coming back gives the very same numbers. (The
paper subtracts one B A and adds another, which rounds.) Tensors of the base that a method trains itself (BitFit, top
layers, biases) are exchanged likewise, whole.
"""

import contextlib

from errors import check
from tuning.attach import attach


class Switch:
    """gpt2: a GPT2Model as it was loaded; it is put in eval mode and frozen: this is for prediction."""

    def __init__(self, gpt2):
        self.gpt2, self.current = gpt2.eval().requires_grad_(False), None
        self.base = {id(tensor) for tensor in _tensors(gpt2)}
        self.swaps = {None: []}  # {task: [(owner, attribute, the task's value, the base's value)]}

    @contextlib.contextmanager
    def fitting(self, name, methods, frozen=False):
        """Within this context the methods ({name: settings}) are on gpt2, for a task's tensors to be loaded into them.

        Afterwards gpt2 is the base again, and the task one to switch to. frozen: the task left GPT-2 as it is, and has
        no method. Raises UserError where there is none otherwise.
        """
        check(
            methods or frozen,
            f"{name} fine-tuned the whole model: it shares nothing with the base to switch on; load it alone",
        )
        self.to(None)
        before, own = _children(self.gpt2), []
        try:
            if methods:
                attach(self.gpt2, methods)
            own = [(p, "data", p.data) for p in self.gpt2.parameters() if p.requires_grad and id(p) in self.base]
            for parameter, *_ in own:
                parameter.data = parameter.data.clone()
            yield
            changed = [*_changes(self.gpt2, before), *own]
            self.swaps[name] = [
                (owner, attribute, getattr(owner, attribute), base) for owner, attribute, base in changed
            ]
        finally:
            self.gpt2.eval().requires_grad_(False)
            for owner, attribute, base in [*_changes(self.gpt2, before), *own]:
                setattr(owner, attribute, base)

    def to(self, name):
        """Put on the task of this name; None: the base alone. Raises UserError for a name that was never fitted."""
        known = ", ".join(str(task) for task in self.swaps if task is not None)
        check(name in self.swaps, f"there is no task {name}: {known or 'none'} can be switched to")
        for owner, attribute, _, base in self.swaps[self.current]:
            setattr(owner, attribute, base)
        for owner, attribute, own, _ in self.swaps[name]:
            setattr(owner, attribute, own)
        self.current = name

    def bytes(self, name):
        """What a task holds in memory beyond the base: its modules' tensors, and its values of the base's own."""
        values = [own for _, _, own, _ in self.swaps[name] if own is not None]
        tensors = {}
        for value in values:
            found = _tensors(value) if hasattr(value, "parameters") else [value]
            tensors |= {id(tensor): tensor for tensor in found if id(tensor) not in self.base}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _children(module):
    """{(parent, name): child} of all modules; an empty slot is there as None, or not at all."""
    return {(parent, name): child for parent in module.modules() for name, child in parent._modules.items()}


def _changes(module, before):
    """[(parent, name, the child from before)] where a module that was there before has another child now."""
    parents = {parent for parent, _ in before}
    now = {place: child for place, child in _children(module).items() if place[0] in parents}
    return [(*place, before.get(place)) for place, child in now.items() if child is not before.get(place)]


def _tensors(module):
    return [*module.parameters(), *module.buffers()]
