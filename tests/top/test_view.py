"""What a key changes of what is shown."""

from documents import NOW, document, engine, target

from vllm_capacity.top.entries import ORDERS, Entry, entries_of
from vllm_capacity.top.feed import Feed
from vllm_capacity.top.view import View, index_of, pressed

ENGINES = [engine("0", saturation_ratio=0.9), engine("1", saturation_ratio=0.5), engine("2")]


def entries(*engines: dict[str, object]) -> list[Entry]:
    shown = document(target(*engines))
    return entries_of([Feed(origin="", document=shown, made_seconds=NOW)], NOW)


def after(keys: str | list[str], listed: list[Entry]) -> View:
    view = View()
    for key in keys:
        view = pressed(view, key, listed)
    return view


def test_keys_go_through_the_engines_and_stop_at_the_ends() -> None:
    listed = entries(*ENGINES)
    for keys, at in (("", 0), ("j", 1), ("jj", 2), ("jjjj", 2), ("jjk", 1), ("kk", 0)):
        assert index_of(after(keys, listed), listed) == at
    assert after(["down", "down", "up"], listed) == after("jjk", listed)


def test_without_a_choice_the_hottest_is_shown_whichever_it_is() -> None:
    listed = entries(*ENGINES)
    assert index_of(View(), listed) == 0
    assert listed[0].key[2] == "0"
    hotter = entries(*ENGINES[:2], engine("2", severity="critical"))
    assert hotter[index_of(View(), hotter)].key[2] == "2"


def test_a_chosen_engine_stays_chosen_when_another_grows_hotter() -> None:
    listed = entries(*ENGINES)
    view = after("j", listed)
    hotter = entries(*ENGINES[:2], engine("2", severity="critical"))
    assert hotter[index_of(view, hotter)].key == listed[1].key


def test_where_the_chosen_engine_is_gone_the_first_is_shown() -> None:
    view = after("jj", entries(*ENGINES))
    assert index_of(view, entries(ENGINES[0])) == 0
    assert index_of(view, []) == 0


def test_s_goes_through_every_order_and_back() -> None:
    view, seen = View(), []
    for _ in ORDERS:
        seen.append(view.order)
        view = pressed(view, "s", [])
    assert seen == list(ORDERS)
    assert view == View()


def test_help_comes_and_goes() -> None:
    assert after("?", []).helps
    assert after("??", []) == View()


def test_a_key_that_means_nothing_changes_nothing() -> None:
    assert after("xyzJK0", entries(*ENGINES)) == View()
    assert after("jk", []) == View()
