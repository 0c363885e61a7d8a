// explorer.hpp: visits every state a small model can reach, and checks what must always, sometimes and at
// rest hold.
//
// Purpose. The protocol is a pure function, so a whole cluster fits into one struct: a model offers its
// initial states, the actions possible in a state and the state each leads to; the explorer does the rest,
// breadth first, so the first counterexample is a shortest one. Its trace is printed in the model's own
// words.
//
// Idea (after stateright, a model checker in Rust): the same machine is checked and run; `sometimes`
// properties prove that the interesting situations were reached at all; the number of states is pinned by the
// tests, so a change of the model or of the protocol is noticed even when nothing breaks.
//
// States are stored whole (no hash compaction: a collision would hide states) but without their zero words,
// one after the other, with an open-addressing index beside them. A model's State must be trivially copyable
// and have no padding, because its bytes are its identity.
//
// Rejected: stateright, TLA+ and SPIN themselves (the model would be a second copy of ownership.hpp); depth
// first (longer traces).
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace drust::test {

enum class When : std::uint8_t {
  Always,     // in every state
  Sometimes,  // in at least one
  AtRest,     // in every state without a possible action
};

template <typename State>
struct Property {
  When when;
  const char* claim;
  bool (*holds)(const State&);
};

template <typename M>
concept Model = requires(const M& model, const typename M::State& state, typename M::Action action,
                         std::vector<typename M::State>& states, std::vector<typename M::Action>& actions) {
  requires std::is_trivially_copyable_v<typename M::State>;
  requires std::has_unique_object_representations_v<typename M::State>;
  model.initial_states(states);
  model.actions(state, actions);
  { model.next(state, action) } -> std::same_as<typename M::State>;
  { model.describe(state, action) } -> std::convertible_to<std::string>;
  { model.properties() } -> std::convertible_to<std::vector<Property<typename M::State>>>;
};

struct Report {
  std::uint64_t states = 0;         // distinct
  std::uint64_t transitions = 0;    // actions taken
  std::uint64_t at_rest = 0;        // states without an action
  std::uint32_t depth = 0;          // of the deepest state
  bool complete = false;            // every reachable state was visited
  std::string violated;             // the first property that failed, empty if none
  std::vector<std::string> trace;   // a shortest way there
  std::vector<std::string> missed;  // `sometimes` properties that no state had

  [[nodiscard]] bool holds() const { return complete && violated.empty() && missed.empty(); }

  void print() const {
    std::printf("      %llu states, %llu transitions, %llu at rest, depth %u%s\n",
                static_cast<unsigned long long>(states), static_cast<unsigned long long>(transitions),
                static_cast<unsigned long long>(at_rest), depth, complete ? "" : " (incomplete)");
    if (!violated.empty()) std::printf("      violated: %s\n", violated.c_str());
    for (const std::string& step : trace)
      std::printf("        %s\n", step.c_str());
    for (const std::string& claim : missed)
      std::printf("      never seen: %s\n", claim.c_str());
  }
};

template <Model M>
class Explorer {
 public:
  using State = typename M::State;
  using Action = typename M::Action;

  explicit Explorer(const M& model, std::uint64_t states_max) : model_(model), states_max_(states_max) {
    index_.assign(1U << 16, Entry{});
  }

  Report run() {
    Report report;
    const auto properties = model_.properties();
    std::vector<bool> seen(properties.size(), false);
    std::vector<State> initial;
    model_.initial_states(initial);
    for (const State& state : initial)
      add(state, kNone, Action{}, 0);

    std::vector<Action> actions;
    for (std::uint32_t at = 0; at < nodes_.size(); ++at) {
      const State state = unpack(at);
      report.depth = nodes_[at].depth;
      actions.clear();
      model_.actions(state, actions);
      if (actions.empty()) ++report.at_rest;
      for (std::size_t p = 0; p < properties.size(); ++p) {
        const auto& property = properties[p];
        if (property.when == When::AtRest && !actions.empty()) continue;
        if (property.when == When::Sometimes) {
          if (!seen[p]) seen[p] = property.holds(state);
        } else if (!property.holds(state)) {
          report.violated = property.claim;
          report.trace = trace(at);
          report.states = nodes_.size();
          return report;
        }
      }
      for (const Action& action : actions) {
        ++report.transitions;
        add(model_.next(state, action), at, action, nodes_[at].depth + 1);
      }
      if (nodes_.size() > states_max_) {
        report.states = nodes_.size();
        return report;
      }
    }
    report.complete = true;
    report.states = nodes_.size();
    for (std::size_t p = 0; p < properties.size(); ++p) {
      if (properties[p].when == When::Sometimes && !seen[p]) report.missed.emplace_back(properties[p].claim);
    }
    return report;
  }

 private:
  static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

  static constexpr std::size_t kWords = (sizeof(State) + 7) / 8;
  static constexpr std::size_t kBitmapWords = (kWords + 63) / 64;

  struct Entry {
    std::uint32_t key = 0;
    std::uint32_t node = kNone;
  };

  struct Node {
    std::uint64_t start;  // in store_
    std::uint32_t parent;
    std::uint32_t depth;
    Action action;
  };

  // A bit for each word that is not zero, then those words.
  void pack(const State& state) {
    std::uint64_t words[kWords];
    words[kWords - 1] = 0;  // the state may end before it
    std::memcpy(words, &state, sizeof(State));
    std::size_t count = kBitmapWords;
    for (std::size_t first = 0; first < kWords; first += 64) {
      std::uint64_t bitmap = 0;  // in a register: this loop and the hash are most of an exploration
      const std::size_t stop = std::min(kWords, first + 64);
      for (std::size_t word = first; word < stop; ++word) {
        const std::uint64_t present = words[word] != 0;
        bitmap |= present << (word - first);
        packed_[count] = words[word];
        count += present;
      }
      packed_[first / 64] = bitmap;
    }
    packed_words_ = count;
  }

  State unpack(std::uint32_t index) const {
    std::uint64_t words[kWords] = {};
    const std::uint64_t* from = store_.data() + nodes_[index].start;
    const std::uint64_t* next = from + kBitmapWords;
    for (std::size_t word = 0; word < kWords; ++word) {
      if ((from[word / 64] >> word % 64 & 1) != 0) words[word] = *next++;
    }
    State state;
    std::memcpy(&state, words, sizeof(State));
    return state;
  }

  // Two lanes, so that one multiplication does not wait for the other.
  [[nodiscard]] std::uint32_t hash_packed() const {
    std::uint64_t lanes[2] = {0x9e3779b97f4a7c15ULL, 0xc2b2ae3d27d4eb4fULL};
    for (std::size_t word = 0; word < packed_words_; ++word) {
      std::uint64_t& lane = lanes[word % 2];
      lane = (lane ^ packed_[word]) * 0xff51afd7ed558ccdULL;
      lane ^= lane >> 32;
    }
    const std::uint64_t h = (lanes[0] ^ lanes[1] >> 7) * 0xff51afd7ed558ccdULL;
    return static_cast<std::uint32_t>(h >> 32 ^ h);
  }

  [[nodiscard]] std::size_t length(std::size_t index) const {
    const std::size_t end = index + 1 < nodes_.size() ? nodes_[index + 1].start : store_.size();
    return end - nodes_[index].start;
  }

  void add(const State& state, std::uint32_t parent, const Action& action, std::uint32_t depth) {
    pack(state);
    const std::uint32_t key = hash_packed();
    std::size_t slot = key & (index_.size() - 1);
    for (; index_[slot].node != kNone; slot = (slot + 1) & (index_.size() - 1)) {
      const Entry& known = index_[slot];
      if (known.key != key || length(known.node) != packed_words_) continue;
      if (std::equal(packed_, packed_ + packed_words_, store_.data() + nodes_[known.node].start)) return;
    }
    index_[slot] = {key, static_cast<std::uint32_t>(nodes_.size())};
    nodes_.push_back({store_.size(), parent, depth, action});
    store_.insert(store_.end(), packed_, packed_ + packed_words_);
    if (nodes_.size() * 2 > index_.size()) grow();
  }

  void grow() {
    std::vector<Entry> before(index_.size() * 2, Entry{});
    before.swap(index_);
    for (const Entry& entry : before) {
      if (entry.node == kNone) continue;
      std::size_t slot = entry.key & (index_.size() - 1);
      while (index_[slot].node != kNone)
        slot = (slot + 1) & (index_.size() - 1);
      index_[slot] = entry;
    }
  }

  std::vector<std::string> trace(std::uint32_t at) const {
    std::vector<std::string> steps;
    for (; nodes_[at].parent != kNone; at = nodes_[at].parent) {
      steps.push_back(model_.describe(unpack(nodes_[at].parent), nodes_[at].action));
    }
    return {steps.rbegin(), steps.rend()};
  }

  const M& model_;
  std::uint64_t states_max_;
  std::vector<std::uint64_t> store_;  // packed states, in the order they were found
  std::uint64_t packed_[kWords + kBitmapWords + 1] = {};  // the one at hand
  std::size_t packed_words_ = 0;
  std::vector<Node> nodes_;
  std::vector<Entry> index_;  // by hash, a power of two
};

template <Model M>
Report explore(const M& model, std::uint64_t states_max = 4'000'000) {
  return Explorer<M>(model, states_max).run();
}

}  // namespace drust::test
