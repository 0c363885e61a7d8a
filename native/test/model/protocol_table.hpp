// protocol_table.hpp: the table of docs/protocol.md, computed from apply().
//
// One row for each event (and each fact that changes it) and each kind of state it is accepted in. What
// depends on the flags of the state is found by trying every combination of them and naming the shortest
// condition that explains where an action appears; a reader sees "bump colour if published", and the sentence
// cannot be out of date.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "base/ensure.hpp"
#include "protocol/ownership.hpp"

namespace drust::test {

struct TableRow {
  std::string event;
  std::string before;
  std::string after;
  std::string actions;
};

struct NamedEvent {
  const char* name;
  protocol::EventKind kind;
  std::uint8_t facts;
};
struct NamedState {
  const char* name;
  protocol::OwnerState state;
  bool is_end = false;  // told apart only to show where ends differ
};
struct Literal {
  const char* yes;
  const char* no;
  std::uint8_t flag;
};

class ProtocolTable {
 public:
  [[nodiscard]] static std::string markdown() {
    std::string text = "| event | in | becomes | actions, in order |\n|---|---|---|---|\n";
    for (const NamedEvent& event : kEvents) {
      std::vector<TableRow> rows;
      for (const NamedState& state : kStates)
        add_row(event, state, rows);
      ensure(!rows.empty(), "every event is accepted somewhere");
      for (std::size_t i = 0; i < rows.size(); ++i) {
        std::string before = rows[i].before;
        while (i + 1 < rows.size() && rows[i].after == rows[i + 1].after &&
               rows[i].actions == rows[i + 1].actions) {
          before += "; " + rows[++i].before;
        }
        text +=
            "| " + rows[i].event + " | " + before + " | " + rows[i].after + " | " + rows[i].actions + " |\n";
      }
    }
    return text;
  }

  // Which error each refused beginning raises, as a second table: event by state.
  [[nodiscard]] static std::string refusals() {
    std::string text = "| event |";
    std::string rule = "|---|";
    for (const NamedState& state : kStates) {
      if (state.is_end) continue;
      text += std::string(" ") + state.name + " |";
      rule += "---|";
    }
    text += "\n" + rule + "\n";
    for (const NamedEvent& event : kEvents) {
      if (event.facts != 0) continue;
      std::string row;
      bool is_beginning = false;
      for (const NamedState& state : kStates) {
        if (state.is_end) continue;
        const protocol::Verdict verdict = protocol::apply(state.state, {event.kind, 0, 2}).verdict;
        row += std::string(" ") + kVerdicts[static_cast<std::size_t>(verdict)] + " |";
        is_beginning =
            is_beginning || (verdict != protocol::Verdict::Ok && verdict != protocol::Verdict::NotBorrowed);
      }
      if (is_beginning) text += std::string("| ") + event.name + " |" + row + "\n";
    }
    return text;
  }

 private:
  using K = protocol::EventKind;
  static constexpr NamedEvent kEvents[] = {
      {"Borrow", K::Borrow, 0},
      {"BorrowEnd", K::BorrowEnd, 0},
      {"BorrowEnd, survivors", K::BorrowEnd, protocol::kSurvivors},
      {"BorrowMut", K::BorrowMut, 0},
      {"BorrowMut, elsewhere", K::BorrowMut, protocol::kElsewhere},
      {"BorrowMut, in place", K::BorrowMut, protocol::kInPlace},
      {"Relocated", K::Relocated, 0},
      {"BorrowMutAborted", K::BorrowMutAborted, 0},
      {"BorrowMutEnd", K::BorrowMutEnd, 0},
      {"BorrowMutEnd, survivors", K::BorrowMutEnd, protocol::kSurvivors},
      {"LendShared", K::LendShared, 0},
      {"LendSharedEnd", K::LendSharedEnd, 0},
      {"LendMut", K::LendMut, 0},
      {"LendMut, elsewhere", K::LendMut, protocol::kElsewhere},
      {"LendMutCommitted", K::LendMutCommitted, 0},
      {"LendMutCommitted, new address", K::LendMutCommitted, protocol::kNewAddress},
      {"LendMutCommitted, in place", K::LendMutCommitted, protocol::kInPlace},
      {"LendMutRolledBack", K::LendMutRolledBack, 0},
      {"LendMutPoisoned", K::LendMutPoisoned, 0},
      {"SplitMut", K::SplitMut, 0},
      {"PartLend", K::PartLend, 0},
      {"PartEnd", K::PartEnd, 0},
      {"PartFailed", K::PartFailed, 0},
      {"Join", K::Join, 0},
      {"Join, survivors", K::Join, protocol::kSurvivors},
      {"Transfer", K::Transfer, 0},
      {"TransferUndone", K::TransferUndone, 0},
      {"Drop", K::Drop, 0},
      {"Abandon", K::Abandon, 0},
      {"OwnerLost", K::OwnerLost, 0},
      {"IntoInner", K::IntoInner, 0},
      {"Replace", K::Replace, 0},
      {"ClearPoison", K::ClearPoison, 0},
      {"Return", K::Return, 0},
      {"ParentBorrowed", K::ParentBorrowed, 0},
      {"ParentBorrowedMut", K::ParentBorrowedMut, 0},
      {"ParentReleased", K::ParentReleased, 0},
      {"MovedWithParent", K::MovedWithParent, 0},
      {"PinsGone", K::PinsGone, 0},
  };

  using P = protocol::Phase;
  using W = protocol::Writer;
  using C = protocol::Ceiling;
  static constexpr NamedState kStates[] = {
      {"Owned", {}},
      {"Shared, one reader", {.phase = P::Shared, .local_readers = 1}},
      {"Shared, one lend", {.phase = P::Shared, .shared_lends = 1}},
      {"Modified here", {.phase = P::Modified, .writer = W::Local}},
      {"Modified, lent", {.phase = P::Modified, .writer = W::Lend}},
      {"Modified, parts out", {.phase = P::Modified, .writer = W::Split, .parts_out = 2}},
      {"Modified, parts back", {.phase = P::Modified, .writer = W::Split}},
      {"Poisoned", {.flags = protocol::kPoisoned}},
      {"Moved", {.phase = P::Moved}},
      {"Dropped", {.phase = P::Dropped}},
      {"RefMut", {.ceiling = C::Mutable}},
      {"RefMut, modified here", {.phase = P::Modified, .writer = W::Local, .ceiling = C::Mutable}, true},
      {"RefMut, lent on", {.phase = P::Modified, .writer = W::Lend, .ceiling = C::Mutable}, true},
      {"Ref", {.ceiling = C::Shared}},
      {"child, parent free", {.ceiling = C::None, .flags = protocol::kChild}},
      {"child, parent shared", {.ceiling = C::Shared, .flags = protocol::kChild}},
      {"child, parent mutable", {.ceiling = C::Mutable, .flags = protocol::kChild}},
      {"child, read",
       {.phase = P::Shared, .ceiling = C::Shared, .flags = protocol::kChild, .local_readers = 1},
       true},
      {"child, modified here",
       {.phase = P::Modified, .writer = W::Local, .ceiling = C::Mutable, .flags = protocol::kChild},
       true},
      {"child, lent",
       {.phase = P::Modified, .writer = W::Lend, .ceiling = C::Mutable, .flags = protocol::kChild},
       true},
  };
  static constexpr Literal kLiterals[] = {
      {"published", "unpublished", protocol::kPublished},
      {"pinned", "no view is alive", protocol::kPinned},
      {"a pre-image", "not a pre-image", protocol::kPreImage},
  };
  static constexpr const char* kVerdicts[] = {"ok",
                                              "Moved",
                                              "Dropped",
                                              "BorrowConflict",
                                              "BorrowMutConflict",
                                              "ParentNotBorrowed",
                                              "ReadOnlyReference",
                                              "NotOwner",
                                              "ChildBorrowed",
                                              "Poisoned",
                                              "NotBorrowed",
                                              "TooMany"};
  static constexpr const char* kActions[] = {"drop shared decode", "move here",       "move to new block",
                                             "keep for views",     "bump colour",     "publish",
                                             "adopt pointer",      "record lend",     "end lend",
                                             "detach from parent", "forbid rollback", "mark in transit",
                                             "drop local copy",    "free old block",  "free tree",
                                             "queue that free",    "send completion"};
  static constexpr int kActionCount = 17;

  [[nodiscard]] static std::string name_of(const protocol::OwnerState& s) {
    static constexpr const char* kPhases[] = {"Owned", "Shared", "Modified", "Moved", "Dropped"};
    static constexpr const char* kWriters[] = {"", " here", ", lent", ", split"};
    std::string name = kPhases[static_cast<int>(s.phase)];
    name += kWriters[static_cast<int>(s.writer)];
    if (s.has(protocol::kPoisoned)) name = "Poisoned";
    return name;
  }

  // The variants of a state that can occur: a flag is tried both ways where it may stand.
  [[nodiscard]] static std::vector<protocol::OwnerState> variants(const protocol::OwnerState& base) {
    std::vector<protocol::OwnerState> out;
    for (unsigned bits = 0; bits < 8; ++bits) {
      protocol::OwnerState s = base;
      for (unsigned i = 0; i < 3; ++i) {
        if ((bits >> i & 1U) != 0) s.flags = static_cast<std::uint8_t>(s.flags | kLiterals[i].flag);
      }
      const bool below_a_lend = s.ceiling != C::Own && s.ceiling != C::Shared;  // only there is a pre-image
      if (s.has(protocol::kPreImage) && !below_a_lend) continue;
      if (s.has(protocol::kPinned) && s.phase >= P::Moved) continue;
      out.push_back(s);
    }
    return out;
  }

  // A conjunction as three ternary digits, one a flag: any, yes, no.
  [[nodiscard]] static bool met(unsigned code, const protocol::OwnerState& s) {
    for (const Literal& literal : kLiterals) {
      const unsigned want = code % 3;
      code /= 3;
      if (want != 0 && ((s.flags & literal.flag) != 0) != (want == 1)) return false;
    }
    return true;
  }
  [[nodiscard]] static std::string words(unsigned code) {
    std::string text;
    for (const Literal& literal : kLiterals) {
      const unsigned want = code % 3;
      code /= 3;
      if (want != 0)
        text += (text.empty() ? "" : " and ") + std::string(want == 1 ? literal.yes : literal.no);
    }
    return text;
  }

  // The shortest "if" that separates the variants in which something happens from the others: one conjunction
  // of flags, or either of two.
  [[nodiscard]] static std::string condition(const std::vector<protocol::OwnerState>& all,
                                             const std::vector<bool>& happens) {
    std::string best(200, '?');
    for (unsigned a = 0; a < 27; ++a) {
      for (unsigned b = a; b < 27; ++b) {
        bool fits = true;
        for (std::size_t v = 0; v < all.size(); ++v)
          fits = fits && (met(a, all[v]) || met(b, all[v])) == happens[v];
        std::string text = words(a);
        if (b != a) text += " or " + words(b);
        if (fits && text.size() < best.size()) best = text;
      }
    }
    ensure(best.front() != '?', "a condition of the table needs more than two clauses");
    return best.empty() ? "" : " if " + best;
  }

  static void add_row(const NamedEvent& event, const NamedState& state, std::vector<TableRow>& rows) {
    const auto all = variants(state.state);
    std::vector<protocol::Step> steps;
    for (const protocol::OwnerState& s : all)
      steps.push_back(protocol::apply(s, {event.kind, event.facts, 2}));
    if (!steps.front().ok()) return;
    std::string actions;
    for (int bit = 0; bit < kActionCount; ++bit) {
      std::vector<bool> happens;
      for (const protocol::Step& step : steps)
        happens.push_back((step.actions >> bit & 1U) != 0);
      if (std::none_of(happens.begin(), happens.end(), [](bool b) { return b; })) continue;
      if (!actions.empty()) actions += "; ";
      actions += kActions[bit] + condition(all, happens);
    }
    std::string after = name_of(steps.front().state);
    bool same = actions.empty();
    for (std::size_t i = 0; i < all.size(); ++i)
      same = same && steps[i].state == all[i];
    if (same && event.kind != K::PartEnd) return;  // nothing to tell
    if (event.kind == K::PinsGone || (event.kind == K::Abandon && steps.front().state.phase != P::Dropped)) {
      after = "the same";
    }
    note_flag(steps, all, protocol::kPublished, "published", "unpublished", after);
    note_flag(steps, all, protocol::kPinned, "pinned", "not pinned", after);
    note_flag(steps, all, protocol::kPartFailed, "part failed", "", after);
    note_flag(steps, all, protocol::kAbandoned, "abandoned", "", after);
    if (state.state.has(protocol::kChild) && steps.front().state.ceiling != state.state.ceiling) {
      static constexpr const char* kCeilings[] = {"parent free", "parent shared", "parent mutable", ""};
      after += std::string(", ") + kCeilings[static_cast<int>(steps.front().state.ceiling)];
    }
    rows.push_back({event.name, state.name, after, actions});
  }

  // Adds what the event does to a flag, where it is the same in every variant.
  static void note_flag(const std::vector<protocol::Step>& steps,
                        const std::vector<protocol::OwnerState>& all, protocol::Flag flag, const char* yes,
                        const char* no, std::string& after) {
    bool kept = true;
    bool set = true;
    bool cleared = true;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      kept = kept && steps[i].state.has(flag) == all[i].has(flag);
      set = set && steps[i].state.has(flag);
      cleared = cleared && !steps[i].state.has(flag);
    }
    if (kept || steps.front().state.phase == P::Dropped) return;
    if (set) after += std::string(", ") + yes;
    if (cleared) after += std::string(", ") + no;
  }
};

}  // namespace drust::test
