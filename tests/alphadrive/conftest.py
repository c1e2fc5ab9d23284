"""Small real inputs for the tests of `alphadrive`: encoded images, records, a model folder."""

import io
import json
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.prompts import answer_text, planning_prompt

sys.path.insert(0, str(Path(__file__).parent))

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def encoded(width: int = 56, height: int = 28, image_format: str = "PNG", shade: int = 90) -> bytes:
    """An encoded picture of a plain shade with a ramp in it."""
    pixels = np.full((height, width, 3), shade, np.uint8)
    pixels[:, :, 0] = np.linspace(0, 255, width, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return encoded


@pytest.fixture
def make_record() -> Callable[..., DrivingRecord]:
    """A valid record number `index`, with the given fields replaced."""

    def make(index: int = 0, data: bytes | None = None, **changes: object) -> DrivingRecord:
        data = encoded(shade=index % 200) if data is None else data
        fields: dict[str, object] = {
            "query_id": f"query-{index}",
            "scene_id": f"scene-{index}",
            "time_s": 0.5 * index,
            "split": "train",
            "images": (ImageRecord(camera="front", dt_s=0.0, data=data, width=56, height=28),),
            "speed_mps": 4.5,
            "navigation": "Straight in 100 m",
            "plans": ("KEEP, STRAIGHT", "ACCELERATE, STRAIGHT"),
            "reasoning": "The road ahead is clear.",
            "source": "test",
            "label_rule": "by hand",
        }
        return DrivingRecord(**{**fields, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a Qwen2-VL to everything that reads no weights: real tokenizer, chat
    template and image processor, one tensor for weights."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [planning_prompt(4.0, "go"), answer_text("The road ahead is clear.", "KEEP, STRAIGHT")]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    ids = fast.get_vocab()
    config = {
        "model_type": "qwen2_vl",
        "image_token_id": ids["<|image_pad|>"],
        "vision_config": {"patch_size": 14, "spatial_merge_size": 2},
    }
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 3136,
        "max_pixels": 1003520,
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    save_file({"weight": np.zeros((4, 4), np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def s3(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty place in a bucket; this process has the credentials in its environment."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def gs_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Google's cloud storage as its emulator does it, on loopback, with a bucket `bucket`, and a service
    account that it takes: what a process that may use it has in its environment."""
    reason = "the dev extra brings gcp-storage-emulator"
    server_module = pytest.importorskip("gcp_storage_emulator.server", reason=reason)
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = {
        "type": "service_account",
        "project_id": "tests",
        "private_key_id": "1",
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "client_email": "tests@tests.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": f"http://127.0.0.1:{port}/token",
    }
    credentials = tmp_path_factory.mktemp("gs") / "account.json"
    credentials.write_text(json.dumps(account))
    server = server_module.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    yield {
        "GOOGLE_APPLICATION_CREDENTIALS": str(credentials),
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": f"http://127.0.0.1:{port}",
    }
    server.stop()


@pytest.fixture
def gs(gs_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """As `s3`, at gs://."""
    for name, value in gs_environment.items():
        monkeypatch.setenv(name, value)
    return f"gs://bucket/{uuid.uuid4().hex}"


@pytest.fixture(params=["file", "s3", "gs"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place, of each kind that runs here."""
    if request.param == "file":
        return (tmp_path / "store").as_uri()
    return str(request.getfixturevalue(request.param))
