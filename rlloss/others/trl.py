"""TRL's GRPOTrainer on a tiny random language model, offline, with its policy loss exchanged, watched."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import rlloss
from rlloss.errors import NotInstalled
from rlloss.others import one_thread
from rlloss.others.exchange import exchanged

LINE = "per_token_loss = -torch.min(per_token_loss1, per_token_loss2)"
WEIGHT = """
unclipped, clipped = coef_1.detach() * advantages, coef_2.detach() * advantages
direct = (unclipped < clipped).to(coef_1.dtype)
tie = (unclipped == clipped).to(coef_1.dtype) * (0.5 + 0.5 * (coef_1 == coef_2).detach().to(coef_1.dtype))
share = direct + tie
weight = torch.where(share > 0, share * coef_1.detach(), 0.0)
"""
FORMS = {
    "ppo": LINE,
    "reinforce": WEIGHT + "per_token_loss = -((weight * per_token_logps) * advantages)",
    "reinforce_logratio": WEIGHT + "per_token_loss = -((weight * log_importance_weights) * advantages)",
    "reinforce_textbook": WEIGHT + "per_token_loss = -((weight * advantages) * per_token_logps)",
    "two_sided_mask": """
        inside = torch.where(coef_1 == coef_2, coef_1, 0.0).detach()
        per_token_loss = -((inside * per_token_logps) * advantages)
    """,
}
"""By the names of ``LOSSES``: what computes the loss of each token, of their names."""

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", *map(chr, range(97, 123)), *map(str, range(10))]
PROMPTS = ("abc", "bcd", "cde", "xyz", "qrs", "mno", "hij", "efg", "tuv", "kla", "wok", "pad")


def train(
    folder: Path,
    loss: str,
    *,
    loss_type: str = "grpo",
    accumulation: int = 1,
    beta: float = 0.0,
    bias_correction: bool = False,
    steps: int = 24,
    iterations: int = 3,
    seed: int = 1,
    watched: Mapping[str, Any] | None = None,
    prepare: Callable[[Any], None] = lambda trainer: None,
) -> None:
    """``loss``: a name of ``FORMS``. ``beta``: weight of a KL term, which ``bias_correction`` multiplies by the ratio.

    ``prepare`` gets their trainer before it trains. Raises: NotInstalled.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        import torch
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise NotInstalled("TRL is not installed; pip install 'rlloss[trainers]'") from error
    with one_thread():
        torch.manual_seed(0)
        home = folder.with_name(f"{folder.name}-trl")
        model = _model(home, reload=beta != 0)
        options = GRPOConfig(
            output_dir=str(home), per_device_train_batch_size=6, gradient_accumulation_steps=accumulation,
            num_generations=3, max_completion_length=10, num_iterations=iterations, learning_rate=1e-2,
            lr_scheduler_type="constant", max_steps=steps, loss_type=loss_type, beta=beta, seed=seed, report_to="none",
            use_cpu=True, save_strategy="no", gradient_checkpointing=False, disable_tqdm=True, logging_steps=1000,
            bf16=False, use_bias_correction_kl=bias_correction,
        )  # fmt: skip
        data = Dataset.from_list([{"prompt": " ".join(prompt)} for prompt in PROMPTS])
        kind = exchanged(GRPOTrainer, "_compute_loss", LINE, FORMS[loss])
        trainer = kind(
            model=model, reward_funcs=_reward, args=options, train_dataset=data, processing_class=_tokenizer()
        )
        optimizer = trainer.create_optimizer()
        prepare(trainer)
        config = {"loss": loss, "trainer": "trl", "loss_type": loss_type, "accumulation": accumulation, "beta": beta}
        with rlloss.watch(trainer.model, optimizer, folder, config=config, **(watched or {})):
            trainer.train()


def _reward(completions: list[str], **_: Any) -> list[float]:
    """Vowels, in few words."""
    return [float(sum(text.count(vowel) for vowel in "aeiou")) - 0.1 * len(text.split()) for text in completions]


def _model(home: Path, *, reload: bool) -> Any:
    """A Llama of 21,920 random numbers. With a KL term TRL loads it again, by the path that it has then."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=2, eos_token_id=1, pad_token_id=0,
        tie_word_embeddings=True,
    ))  # fmt: skip
    if reload:
        model.save_pretrained(home / "model")
        model = LlamaForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    return model


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)
