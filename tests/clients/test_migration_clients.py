"""Who follows a guide in docs/migrate gets equal parameters: those whose code from before needs its library."""

from pathlib import Path

import pytest
from guides import OF_CLIENTS, check_guide

pytestmark = [
    pytest.mark.clients,
    # Lightning's own: a deprecated check of torch's, and advice on worker processes for loading data.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    # MMEngine's schedulers of the second half of a run come before its first update.
    pytest.mark.filterwarnings("ignore:Detected call of"),
]


@pytest.mark.parametrize(("page", "library"), OF_CLIENTS.items())
def test_equal_parameters(page: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library, reason="needs the extra: pip install 'funcopt[clients]'")
    monkeypatch.chdir(tmp_path)  # where trainers write
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_guide(page)
