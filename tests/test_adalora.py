"""AdaLoRA against peft: outputs, and the allocation over a whole schedule."""

import peft
import torch
import torch.nn.functional as F

from config import (
    AdaLoRASettings,
)
from models.sonnet_gpt import SonnetGPT
from modules.adalora import AdaLoRALinear, RankAllocator, adalora_penalty
from tests.peft_hosts import PeftHost, compare_with_injected, randomise
from training.assembly import Assembly
from tuning.attach import attach
from tuning.state import trainable_state_dict

ADALORA = AdaLoRASettings(
    adalora_start_rank=5, adalora_rank=2, adalora_dropout=0.0, adalora_interval=3, adalora_warmup=0.15,
    adalora_final=0.25, adalora_targets="query,value,out_dense",
)  # fmt: skip


def peft_adalora(gpt2, total_steps):
    config = peft.AdaLoraConfig(
        init_r=5, target_r=2, lora_alpha=32, lora_dropout=0.0, deltaT=3, total_step=total_steps,
        tinit=round(0.15 * total_steps), tfinal=round(0.25 * total_steps), beta1=0.85, beta2=0.85,
        orth_reg_weight=0.5, target_modules=ADALORA.targets,
    )  # fmt: skip
    return peft.AdaLoraModel(PeftHost(gpt2), {"default": config}, "default")


def adalora_name(name):
    name = name.removeprefix("model.").removeprefix("gpt2.")
    return name.replace(".default", "")


def test_adalora_equals_peft(gpt2, fresh):
    attach(gpt2, {"adalora": ADALORA})
    randomise(gpt2)
    theirs = peft_adalora(fresh(), 40)
    compare_with_injected(gpt2, theirs, adalora_name)


def test_adalora_allocates_as_peft_over_a_whole_schedule(gpt2, fresh):
    """40 steps of plain gradient descent on the same loss: the same factors, the same triplets kept, at every step."""
    total_steps, lr = 40, 0.05
    attach(gpt2, {"adalora": ADALORA})
    theirs = peft_adalora(fresh(), total_steps)
    tensors = trainable_state_dict(gpt2)
    pairs = {adalora_name(name): p for name, p in theirs.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in pairs.items():
            p.copy_(tensors[name])
    model, tuned = SonnetGPT(gpt2), Assembly(gpt2, None, {"adalora": ADALORA}, "", None)
    loss_fn = tuned.loss(lambda model, batch: model(batch, torch.ones_like(batch), return_loss=True))
    kept_counts = []
    for step in range(1, total_steps + 1):
        torch.manual_seed(step)
        batch = torch.randint(8600, (2, 12))
        loss, count = loss_fn(model, batch)
        (loss / count).backward()

        hidden = theirs(batch)
        logits = F.linear(hidden, theirs.model.gpt2.word_embedding.weight)
        their_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        factors = [p for name, p in pairs.items() if name.endswith(("lora_A", "lora_B"))]
        penalty = sum(((f @ f.t() if f.size(0) == 5 else f.t() @ f) - torch.eye(5)).norm() for f in factors)
        (their_loss + 0.5 * penalty / len(factors)).backward()
        with torch.no_grad():
            for p in (*gpt2.parameters(), *pairs.values()):
                if p.grad is not None:
                    p -= lr * p.grad
        tuned.after_step(step, total_steps)
        theirs.update_and_allocate(step)
        gpt2.zero_grad()
        theirs.zero_grad()
        for name, p in pairs.items():
            ours = dict(gpt2.named_parameters())[name]
            torch.testing.assert_close(ours, p, atol=1e-5, rtol=1e-4, msg=f"step {step}, {name}")
            if name.endswith("lora_E"):
                assert torch.equal(ours == 0, p == 0), (step, name)
        kept_counts.append(sum(int((p != 0).sum()) for name, p in pairs.items() if name.endswith("lora_E")))
    assert kept_counts[0] == 45 and kept_counts[-1] == 18  # 9 linears: ranks 5 at the start, 2 on average at the end
    assert len(set(kept_counts)) > 4


def test_adaloras_penalty_against_the_equation(gpt2):
    attach(gpt2, {"adalora": ADALORA})
    terms = []
    for module in gpt2.modules():
        if isinstance(module, AdaLoRALinear):
            terms += [(m @ m.t() - torch.eye(5)).pow(2).sum().sqrt() for m in (module.lora_A, module.lora_B.t())]
    torch.testing.assert_close(adalora_penalty(gpt2, ADALORA), 0.5 * sum(terms) / len(terms))


def test_adaloras_budget_falls_on_the_cubic_curve(gpt2):
    attach(gpt2, {"adalora": ADALORA})
    allocator = RankAllocator(gpt2, ADALORA)  # ranks 45 -> 18, warm-up 15 steps, the last 25 fixed
    budgets = [allocator.budget(step, 100)[0] for step in range(1, 101)]
    assert budgets[:15] == [45] * 15 and budgets[74:] == [18] * 26
    for step in range(16, 75):
        assert budgets[step - 1] == int(27 * (1 - (step - 15) / 60) ** 3 + 18)
    assert budgets == sorted(budgets, reverse=True)
