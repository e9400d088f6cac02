"""Small archives in the formats of NAS-Bench-201's, and what stands for the package they need."""

import bz2
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest


def trial(seed: int, accuracies: dict[str, float], params: float, flop: float) -> dict:
    """What an archive holds of one training: the state of a `ResultsCount`."""
    return {
        "name": "infer.tiny",
        "net_state_dict": None,
        "train_acc1es": {199: 99.0},
        "train_losses": {199: 0.1},
        "train_times": None,
        "arch_config": {},
        "params": params,
        "flop": flop,
        "seed": seed,
        "epochs": 200,
        "latency": None,
        "eval_names": list(accuracies),
        "eval_acc1es": {f"{name}@199": value for name, value in accuracies.items()},
        "eval_losses": {f"{name}@199": 0.1 for name in accuracies},
        "eval_times": {},
    }


def results(index: int, arch: str) -> dict:
    """What an archive holds of an architecture: the state of an `ArchResults`."""
    trained = {
        ("cifar10", 777): trial(777, {"ori-test": 80.0 + index}, 0.5 + index, 10.0 + index),
        ("cifar10", 888): trial(888, {"ori-test": 81.0 + index}, 0.5 + index, 10.0 + index),
        ("cifar100", 777): trial(777, {"x-test": 70.0 + index, "ori-test": 1.0}, 9.0, 9.0),
        ("ImageNet16-120", 777): trial(777, {"x-test": 45.0, "ori-test": 1.0}, 8.0, 8.0),
    }
    seeds = {"cifar10": [777, 888], "cifar100": [777], "ImageNet16-120": [777]}
    state = {"arch_index": index, "arch_str": arch, "clear_net_done": True}
    return state | {"all_results": trained, "dataset_seed": seeds}


class StubResults:
    """What is used of `nats_bench.ArchResults`, with its definitions."""

    @classmethod
    def create_from_state_dict(cls, state: dict) -> "StubResults":
        stub = cls()
        stub.trials = {
            dataset: [state["all_results"][dataset, seed] for seed in seeds]
            for dataset, seeds in state["dataset_seed"].items()
        }
        return stub

    def get_metrics(self, dataset: str, setname: str) -> dict:
        trials = self.trials[dataset]
        return {"accuracy": np.mean([each["eval_acc1es"][f"{setname}@199"] for each in trials])}

    def get_compute_costs(self, dataset: str) -> dict:
        trials = self.trials[dataset]
        return {
            "params": np.mean([each["params"] for each in trials]),
            "flops": np.mean([each["flop"] for each in trials]),
        }


def stub_pickle_load(path: Path) -> object:
    with bz2.open(path) as file:
        return pickle.load(file)


STUB = SimpleNamespace(ArchResults=StubResults, pickle_load=stub_pickle_load)


def write_archive(folder: Path, kind: str, archs: Sequence[str]) -> Path:
    """A small archive of one of the three official kinds."""
    states = {index: results(index, arch) for index, arch in enumerate(archs)}
    meta = {"meta_archs": list(archs), "evaluated_indexes": set(states)}
    if kind == "folder":
        path = folder / "NATS-tss-v1_0-3ffb9-simple"
        path.mkdir()
        files = {"meta": meta} | {f"{i:06d}": {"200": state} for i, state in states.items()}
        for name, value in files.items():
            (path / f"{name}.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps(value)))
    elif kind == "file":
        path = folder / "NATS-tss-v1_0-3ffb9.pickle.pbz2"
        infos = {index: {"200": state} for index, state in states.items()}
        path.write_bytes(bz2.compress(pickle.dumps(meta | {"arch2infos": infos})))
    else:
        torch = pytest.importorskip("torch")
        path = folder / "NAS-Bench-201-v1_1-096897.pth"
        infos = {index: {"full": state, "less": {}} for index, state in states.items()}
        torch.save(meta | {"arch2infos": infos}, path)
    return path
