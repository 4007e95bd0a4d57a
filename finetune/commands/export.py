"""`finetune export`: a checkpoint as a file for other programs, which is kept only if it answers as the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from finetune.data.openers import is_hub_data, is_image_path
from finetune.data.registry import ALIASES, DATASETS
from finetune.errors import DataError, DownloadError, ExportError, SettingError
from finetune.exports import onnx_file, torch_file
from finetune.exports.facts import ExportFacts, Takes
from finetune.exports.proof import Latency, Logits, Proof, measure_latency
from finetune.exports.quantize import Quantized, quantize
from finetune.io.atomic import prepared_files
from finetune.io.outputs import check_output, move_files_aside
from finetune.io.safe_open import is_file, is_folder, sha256_of
from finetune.io.sanitize import printable
from finetune.models.classifier import Classifier
from finetune.models.staged import eval_mode
from finetune.paths import data_root as resolve_data_root
from finetune.report.comparison import Comparison, compare, sentence
from finetune.report.console import Console
from finetune.report.report import json_values
from finetune.report.tables import percent
from finetune.run.decoded_pictures import DecodedPictures, as_rgb, open_decoded
from finetune.run.measured import LearntFrom
from finetune.sources.resolve import Source, locate, open_source
from finetune.sources.save import make_metadata
from finetune.system import versions
from finetune.text import amount, listed
from finetune.train.inference import batched_apply, eval_batch_size

if TYPE_CHECKING:
    from PIL.Image import Image

    from finetune.exports.onnx_file import OnnxFile
    from finetune.exports.torch_file import TorchFile

Format = Literal["onnx", "torch-export"]
SUFFIXES: dict[Format, str] = {"onnx": onnx_file.SUFFIX, "torch-export": torch_file.SUFFIX}
INT8 = ".int8"
CALIBRATION = 200  # images whose activations give the ranges of int8
TIMED = 20  # pictures


@dataclass(frozen=True)
class WrittenExport:
    """One exported file: how large it is, its hash, and how long it takes for one picture."""

    path: str
    bytes: int
    sha256: str
    latency: Latency


@dataclass(frozen=True)
class Int8Export:
    """The int8 file, how it was made, and its accuracy paired with that of the float file on the same pictures."""

    file: WrittenExport
    method: str
    calibrated_on: int
    accuracy: float
    float_accuracy: float
    changed: int
    comparison: Comparison

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        return sentence(self.comparison, "int8", "float32")


@dataclass(frozen=True)
class Export:
    """What `export_checkpoint` wrote, and what it was proven on.

    checkpoint_milliseconds: what the checkpoint itself takes for one picture, timed in turn with the files.
    """

    checkpoint: str
    sha256: str
    to: Format
    takes: Takes
    input: str
    labels: tuple[str, ...]
    file: WrittenExport
    data: str
    part: str
    proof: Proof
    checkpoint_milliseconds: float
    threads: int
    versions: Mapping[str, str]
    int8: Int8Export | None = None

    def to_dict(self) -> dict[str, Any]:
        """The export as JSON values, as NAME.export.json has them."""
        values = asdict(self) | {"proof": asdict(self.proof) | {"holds": self.proof.holds}}
        if self.int8 is not None:
            values["int8"] |= {"sentence": self.int8.sentence}
        else:
            del values["int8"]
        return json_values(values)


def export_checkpoint(
    checkpoint: str | Path,
    *,
    to: Format = "onnx",
    raw: bool = False,
    int8: bool = False,
    data: str | None = None,
    out: str | Path | None = None,
    data_root: str | Path | None = None,
    console: Console | None = None,
) -> Export:
    """Writes a checkpoint as an ONNX file or a torch.export program, and proves that it answers as the checkpoint does.

    The file takes decoded pictures (uint8, N×H×W×3); with `raw` the network's own input. int8: also write a quantized
    one, NAME.int8.onnx, judged against the first. data: whose pictures to prove it on, as in `evaluate`; by default
    what the checkpoint was tested on. out: the file, by default NAME.onnx or NAME.pt2 beside the checkpoint;
    NAME.export.json beside it has what is returned. data_root, console: as in `evaluate`.

    ExportError, and nothing is written, where the network cannot be exported or the file's logits differ by more than
    1e-4 or name another class for any picture. Other errors are those of `finetune.errors`.
    """
    console = console or Console(quiet=True, results=False)
    _check_settings(to, int8=int8)
    source = open_source(locate(checkpoint, note=console.note, bars=not console.quiet))
    if not source.classifier.class_names:
        raise SettingError(f"{checkpoint}: these weights have no head, so they name no class; adapt makes one")
    path = _output_path(source, to, out)
    learnt = LearntFrom.of(source.metadata)
    pictures = _open_pictures(source, str(checkpoint), data, resolve_data_root(data_root), learnt, console, int8=int8)
    facts = _facts(source, raw=raw)
    console.note(f"exporting {printable(str(checkpoint))} to {to}")
    made = _make(source.classifier, facts, to, pictures if int8 else None)
    return _prove_and_write(source, str(checkpoint), to, path, pictures, made, console)


def _check_settings(to: str, *, int8: bool) -> None:
    if to not in get_args(Format):
        raise SettingError(f"--to {to}: expected one of {listed(get_args(Format))}")
    if int8 and to != "onnx":
        raise SettingError(f"--int8 goes with --to onnx, found --to {to}")
    if to == "onnx":
        onnx_file.need_onnx()


def _output_path(source: Source, to: Format, out: str | Path | None) -> Path:
    """Where the file goes, which can be written. SettingError, OutputError."""
    folder = source.path.parent if source.path is not None else Path("checkpoints")
    path = Path(out) if out is not None else folder / f"{source.name}{SUFFIXES[to]}"
    beside = [report_path(path), path.with_suffix(f"{INT8}{SUFFIXES[to]}")]
    return check_output(path, "--out", [SUFFIXES[to]], inputs=[source.path], beside=beside)


def _facts(source: Source, *, raw: bool) -> ExportFacts:
    metadata = source.metadata or make_metadata(source.classifier, lineage=source.lineage_of_child())
    return ExportFacts(metadata, "tensors" if raw else "pictures", source.sha256)


def _open_pictures(
    source: Source, name: str, data: str | None, root: Path, learnt: LearntFrom, console: Console, *, int8: bool
) -> DecodedPictures:
    """The pictures to prove the file on. DataError that says what to give, where none are found."""
    give = f"{name}: a file is kept only if it is proven on real pictures; give some with --data"
    if data is None and (data := _own_data(source)) is None:
        tested = f" (it was tested on {printable(source.dataset)})" if source.dataset is not None else ""
        raise DataError(f"{give}: a data set's name, a folder of pictures, a table or shards{tested}")
    try:
        pictures = open_decoded(data, root, source.classifier.input, name, learnt, console, keep_others=int8)
    except (DataError, DownloadError) as error:
        raise DataError(f"{give}; those of {printable(data)} cannot be had: {error}") from None
    if not len(pictures):
        raise DataError(f"{give}; there is none in {printable(data)}")
    if int8 and not len(pictures.others):
        raise DataError(f"{printable(data)}: --int8 needs pictures to calibrate with beside those it is measured on")
    if int8 and not set(source.classifier.class_names) & set(pictures.images.class_names):
        raise DataError(f"{printable(data)}: --int8 is judged by labels, and none of its classes is the checkpoint's")
    return pictures


def _own_data(source: Source) -> str | None:
    """What the checkpoint says it was tested on, where it is here or a registered data set; else None."""
    recipe = source.metadata.recipe if source.metadata is not None else {}
    settings = recipe.get("data")
    name = settings.get("name") if isinstance(settings, Mapping) else None
    if not isinstance(name, str):
        return None
    there = is_hub_data(name) or is_file(name) or is_folder(name)
    return name if name in DATASETS or name in ALIASES or (is_image_path(name) and there) else None


def onnx_parts(
    checkpoint: str | Path, data: str | None, data_root: str | Path | None, console: Console
) -> tuple[bytes, bytes, Proof]:
    """A checkpoint's ONNX file in its two parts, what makes pictures the input and the network, and what proves both.

    data, data_root and errors: as in `export_checkpoint`. Nothing is written.
    """
    onnx_file.need_onnx()
    source = open_source(locate(checkpoint))
    learnt, root = LearntFrom.of(source.metadata), resolve_data_root(data_root)
    pictures = _open_pictures(source, str(checkpoint), data, root, learnt, console, int8=False)
    facts = _facts(source, raw=False)
    console.note(f"exporting {printable(str(checkpoint))} to ONNX")
    with eval_mode(source.classifier.network):
        network = onnx_file.network_model(source.classifier.network, facts)
    before = onnx_file.picture_model(facts)
    whole = onnx_file.encode(onnx_file.with_pictures(before, network), facts)
    files = {"file": onnx_file.OnnxFile(whole, facts.metadata.model)}
    proof = _proven(source.classifier, str(checkpoint), "onnx", pictures, files, console)[0]
    return onnx_file.encode(before, facts), onnx_file.encode(network, _facts(source, raw=True)), proof


def _proven(
    classifier: Classifier,
    name: str,
    to: Format,
    pictures: DecodedPictures,
    files: Mapping[str, OnnxFile | TorchFile],
    console: Console,
) -> tuple[Proof, dict[str, Logits]]:
    """The proof of the "file", and the logits of the checkpoint and all files. ExportError where it does not hold."""
    logits = _all_logits(classifier, pictures, files, console)
    proof = Proof.of(logits["checkpoint"], logits["file"], pictures.names())
    if not proof.holds:
        raise ExportError(_failed(name, to, proof))
    return proof, logits


@dataclass(frozen=True)
class _Made:
    """Files that were made and not yet proven; the int8 one with how."""

    content: bytes
    opened: OnnxFile | TorchFile
    facts: ExportFacts
    int8: tuple[bytes, OnnxFile, Quantized] | None = None


def _make(classifier: Classifier, facts: ExportFacts, to: Format, calibration: DecodedPictures | None) -> _Made:
    """Makes the file, and of it an int8 one where there are pictures to calibrate it with. ExportError."""
    network = classifier.network
    with eval_mode(network):
        if to == "torch-export":
            content = torch_file.encode(network, facts)
            return _Made(content, torch_file.TorchFile(content, facts), facts)
        model = onnx_file.network_model(network, facts)
        before = onnx_file.picture_model(facts) if facts.takes == "pictures" else None
    content = onnx_file.encode(model if before is None else onnx_file.with_pictures(before, model), facts)
    opened = onnx_file.OnnxFile(content, facts.metadata.model)
    if calibration is None:
        return _Made(content, opened, facts)
    found = quantize(model, _calibration_inputs(classifier, calibration))
    facts8 = ExportFacts(facts.metadata, facts.takes, facts.sha256, "int8")
    content8 = onnx_file.encode(found.model if before is None else onnx_file.with_pictures(before, found.model), facts8)
    return _Made(content, opened, facts, (content8, onnx_file.OnnxFile(content8, facts.metadata.model), found))


def _calibration_inputs(classifier: Classifier, pictures: DecodedPictures) -> npt.NDArray[np.float32]:
    """Images that are none of the measured ones, as the network takes them: at even distances, so of all classes."""
    count = len(pictures.others)
    chosen = pictures.others.subset(np.linspace(0, count - 1, min(count, CALIBRATION)).astype(np.int64))
    inputs: npt.NDArray[np.float32] = classifier.input.normalizer(torch.device("cpu"))(
        chosen.images[0 : len(chosen)]
    ).numpy()
    return inputs


def _prove_and_write(
    source: Source, name: str, to: Format, path: Path, pictures: DecodedPictures, made: _Made, console: Console
) -> Export:
    files: dict[str, OnnxFile | TorchFile] = {"file": made.opened}
    if made.int8 is not None:
        files["int8"] = made.int8[1]
    proof, logits = _proven(source.classifier, name, to, pictures, files, console)
    latency = _latencies(source.classifier, pictures, files)
    paths = {path: made.content}
    file = WrittenExport(path.name, len(made.content), sha256_of(made.content), latency["file"])
    int8 = None
    if made.int8 is not None:
        small = path.with_suffix(f"{INT8}{onnx_file.SUFFIX}")
        paths[small] = made.int8[0]
        written = WrittenExport(small.name, len(made.int8[0]), sha256_of(made.int8[0]), latency["int8"])
        int8 = _judge_int8(source.classifier, pictures, logits, written, made.int8[2])
    export = Export(
        checkpoint=name,
        sha256=source.sha256,
        to=to,
        takes=made.facts.takes,
        input=made.facts.input_text,
        labels=source.classifier.class_names,
        file=file,
        data=pictures.name,
        part=pictures.part,
        proof=proof,
        checkpoint_milliseconds=latency["checkpoint"].milliseconds,
        threads=torch.get_num_threads(),
        versions=_versions(source.classifier.model, to),
        int8=int8,
    )
    _write(export, path, paths, console)
    return export


def _all_logits(
    classifier: Classifier, pictures: DecodedPictures, files: Mapping[str, OnnxFile | TorchFile], console: Console
) -> dict[str, Logits]:
    """Logits (N×classes) of all pictures by the "checkpoint" and by each file."""
    found: dict[str, list[Logits]] = {name: [] for name in ("checkpoint", *files)}
    size = min(64, eval_batch_size(classifier.input.size**2, torch.device("cpu")))
    with console.task("proving") as progress:
        for batch in pictures.batches(size):
            inputs = torch.stack([classifier.preprocess(picture) for picture in batch])
            ours = batched_apply(classifier.network, classifier.network, inputs, len(inputs))
            found["checkpoint"].append(ours.numpy())
            for name, file in files.items():
                found[name].append(_run(file, batch, inputs.numpy()))
            progress(sum(map(len, found["checkpoint"])), len(pictures))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _run(file: OnnxFile | TorchFile, pictures: Sequence[Image], inputs: npt.NDArray[np.float32]) -> Logits:
    """A file's logits of pictures, which go in as the file takes them: those of one size together."""
    if file.facts.takes == "tensors":
        return file.run(inputs)
    arrays, by_size = [as_rgb(picture) for picture in pictures], dict[tuple[int, ...], list[int]]()
    for index, array in enumerate(arrays):
        by_size.setdefault(array.shape, []).append(index)
    rows: dict[int, Logits] = {}
    for indices in by_size.values():
        rows |= zip(indices, file.run(np.stack([arrays[index] for index in indices])), strict=True)
    return np.stack([rows[index] for index in range(len(arrays))])


def _latencies(
    classifier: Classifier, pictures: DecodedPictures, files: Mapping[str, OnnxFile | TorchFile]
) -> dict[str, Latency]:
    """One picture at a time, from the decoded picture or, for files of tensors, from the network's input on."""
    indices = np.linspace(0, len(pictures) - 1, min(TIMED, len(pictures))).astype(int).tolist()
    decoded = pictures.decoded(indices)
    takes = next(iter(files.values())).facts.takes
    prepared = [(picture, as_rgb(picture)[None], classifier.preprocess(picture)[None]) for picture in decoded]

    def ours(item: tuple[Image, Any, torch.Tensor]) -> object:
        return classifier.network(classifier.preprocess(item[0])[None] if takes == "pictures" else item[2])

    def theirs(file: OnnxFile | TorchFile) -> Callable[[tuple[Image, Any, torch.Tensor]], object]:
        return lambda item: file.run(item[1] if takes == "pictures" else item[2].numpy())

    runs = {"checkpoint": ours, **{name: theirs(file) for name, file in files.items()}}
    with torch.no_grad(), eval_mode(classifier.network):
        return measure_latency(runs, prepared, "checkpoint")


def _judge_int8(
    classifier: Classifier,
    pictures: DecodedPictures,
    logits: Mapping[str, Logits],
    written: WrittenExport,
    quantized: Quantized,
) -> Int8Export:
    """Pairs the int8 file's answers with the float file's, on pictures of the classes that both sides know."""
    known = {name: index for index, name in enumerate(classifier.class_names)}
    labels = np.array([known.get(pictures.images.class_names[label], -1) for label in pictures.images.labels.tolist()])
    groups, judged = pictures.images.group_indices(), labels >= 0
    answers = {name: rows.argmax(1) for name, rows in logits.items()}
    right = {name: (answers[name] == labels)[judged] for name in ("file", "int8")}
    comparison = compare(right["file"], right["int8"], None if groups is None else groups[judged])
    accuracy, before = float(right["int8"].mean()), float(right["file"].mean())
    changed = int((answers["file"] != answers["int8"]).sum())
    return Int8Export(written, quantized.method, quantized.images, accuracy, before, changed, comparison)


def _failed(name: str, to: Format, proof: Proof) -> str:
    changed = f"; another class for {listed(map(printable, proof.changed))}" if proof.changed else ""
    return (
        f"{name}: the {to} file does not answer as the checkpoint does, so it is not kept: logits differ by up to "
        f"{proof.largest_difference:.2g} ({printable(proof.worst)}), expected at most {proof.tolerance:g}, on "
        f"{proof.pictures:,} pictures{changed}"
    )


def _versions(model: str, to: Format) -> dict[str, str]:
    from importlib.metadata import version

    names = ("onnx", "onnxruntime", "onnxscript") if to == "onnx" else ()
    return {**versions(model), **{name: version(name) for name in names}}


def report_path(path: Path) -> Path:
    """NAME.export.json of an exported file."""
    return path.with_suffix(".export.json")


def _write(export: Export, path: Path, contents: Mapping[Path, bytes], console: Console) -> None:
    """Writes the files and the report together; older, different files get second names first. OutputError."""
    import json

    report = report_path(path)
    text = json.dumps(export.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with prepared_files({**contents, report: text.encode()}):
        older = [own for own, content in contents.items() if is_file(own) and sha256_of(own) != sha256_of(content)]
        if older:
            move_files_aside([*older, report], path.stem, console.note)
    for line in export_lines(export):
        console.say(line)
    console.say(f"wrote {path} and {report.name}" + (f", {export.int8.file.path}" if export.int8 else ""))


def export_lines(export: Export) -> list[str]:
    """What the command shows of an export."""
    proof, file = export.proof, export.file
    lines = [
        f"{file.path}: {amount(file.bytes)}; takes {export.input}",
        f"proven on {proof.pictures:,} pictures of {export.data} ({export.part}): logits within "
        f"{proof.largest_difference:.2g} of the checkpoint's (at most {proof.tolerance:g}), no class changed",
        f"one picture, {export.threads} threads: checkpoint {export.checkpoint_milliseconds:.1f} ms, "
        f"{file.path} {file.latency.milliseconds:.1f} ms ({file.latency.ratio:.2f} times the checkpoint's)",
    ]
    if (small := export.int8) is not None:
        how = f"{small.method}, calibrated on {small.calibrated_on} images" if small.calibrated_on else small.method
        lines += [
            f"{small.file.path}: {amount(small.file.bytes)}, {small.file.bytes / file.bytes:.2f} of it ({how}); one "
            f"picture {small.file.latency.milliseconds:.1f} ms ({small.file.latency.ratio:.2f} times the checkpoint's)",
            f"accuracy {percent(small.accuracy)}, float {percent(small.float_accuracy)}, {small.changed:,} of "
            f"{proof.pictures:,} pictures named differently: {small.sentence}",
        ]
    return lines
