"""Who is there of a run's load processes, and who is waited for."""

from loadtest.roster import LOST_S, Roster


def roster(*names):
    made = Roster()
    for name in names:
        made.came(name, 0.0)
    return made


def test_nobody_is_waited_for_where_nobody_is():
    assert roster().all_final and roster().all_reported() and not roster().has_shares


def test_a_second_is_over_when_all_have_reported():
    both = roster("a", "b")
    both.heard("a", 1.0)
    assert not both.all_reported()
    both.heard("b", 1.0)
    assert both.all_reported()
    both.begin_second()
    assert not both.all_reported()


def test_shares_are_dealt_in_the_order_of_coming_and_come_back():
    both = roster("b", "a")
    assert both.share_out() == ["b", "a"]
    both.came("late", 1.0)
    both.done("a")
    assert both.has_shares
    both.done("b")
    assert not both.has_shares


def test_the_last_batch_of_each():
    both = roster("a", "b")
    both.final("a")
    assert (both.all_final, both.missing) == (False, 1)
    both.final("b")
    assert (both.all_final, both.missing) == (True, 0)


def test_silence_means_gone_unless_all_was_said():
    three = roster("a", "b", "c")
    three.heard("a", LOST_S)
    three.final("b")
    assert three.lost(LOST_S + 0.1) == ["c"]
    three.excuse_silence(LOST_S)
    assert three.lost(LOST_S + 0.1) == []


def test_who_is_gone_holds_nobody_up():
    both = roster("a", "b")
    both.share_out()
    both.heard("b", 1.0)
    both.went("a")
    both.went("a")  # twice is no harm
    both.done("b")
    assert (len(both), both.has_shares, both.all_reported()) == (1, False, True)
    assert both.share_out() == ["b"]


def test_a_stranger_counts_for_nothing():
    """Its HELLO is still on its way, or it was given up."""
    one = roster("a")
    one.heard("stranger", 1.0)
    assert (len(one), one.all_reported()) == (1, False)
