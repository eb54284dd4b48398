"""The map as a value, and its copy on the disk."""

from pathlib import Path

from sharding.shardmap import Placement, ShardInfo, ShardMap, ownership_keys, read_map_file, write_map_file
from wire.ids import NsId, Slot, make_ns_id, system_ns

ALONE = make_ns_id(Slot(1), 5)
MAP = ShardMap(
    cluster_id="c",
    version=3,
    slots=[Placement("one", 1), Placement("two", 4)],
    overrides={ALONE: Placement("one", 9)},
    shards={
        name: ShardInfo(name=name, dsn=f"dbname={name}", weight=1, labels={"region": "eu"})
        for name in ("one", "two")
    },
)


def test_placements():
    assert MAP.placement(make_ns_id(Slot(0), 5)) == Placement("one", 1)
    assert MAP.placement(make_ns_id(Slot(1), 4)) == Placement("two", 4)
    assert MAP.placement(ALONE) == Placement("one", 9)
    assert MAP.placement(make_ns_id(Slot(2), 1)) is None
    assert (MAP.slots_of("one"), MAP.slots_of("two"), MAP.slots_of("three")) == ([0], [1], [])


def test_the_keys_of_a_namespace():
    assert ownership_keys(ALONE) == (ALONE, system_ns(Slot(1)))
    assert ownership_keys(system_ns(Slot(1))) == (system_ns(Slot(1)),) * 2


def test_the_file_comes_back(tmp_path: Path):
    path = tmp_path / "map.json"
    assert read_map_file(path) is None
    write_map_file(path, MAP)
    assert read_map_file(path) == MAP
    assert [p.name for p in tmp_path.iterdir()] == ["map.json"]
    for text in ("", "{", "[]", '{"version": 1}'):
        path.write_text(text)
        assert read_map_file(path) is None
    assert isinstance(next(iter(MAP.overrides)), int)
    assert NsId(1) not in MAP.overrides
