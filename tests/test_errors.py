import pickle

from effnet_batch import errors
from effnet_batch.vocabulary import STATUS_OK, STATUSES


def subclasses(kind: type) -> list[type]:
    return [found for child in kind.__subclasses__() for found in (child, *subclasses(child))]


def test_the_tree_names_every_error_and_its_status() -> None:
    ours = [k for k in subclasses(errors.EffnetBatchError) if k.__module__ == errors.__name__]
    # The last parts of the drawing's lines: a name, then what it means.
    drawn = {
        line.split("── ")[1].split()[0]: line.split()
        for line in (errors.__doc__ or "").splitlines()
        if "── " in line
    }
    assert set(drawn) == {kind.__name__ for kind in ours}
    records = [kind for kind in errors.RecordError.__subclasses__() if kind in ours]
    for kind in records:
        assert drawn[kind.__name__][-2:] == ["status", kind.status]
    assert sorted(kind.status for kind in records) == sorted(set(STATUSES) - {STATUS_OK})


def test_record_errors_cross_processes() -> None:
    for kind in errors.RecordError.__subclasses__():
        if kind.__module__ == errors.__name__:
            copy = pickle.loads(pickle.dumps(kind("what, where")))
            assert (type(copy), str(copy), copy.status) == (kind, "what, where", kind.status)
