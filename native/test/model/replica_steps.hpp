// replica_steps.hpp: ReplicaModel: what may happen next, what it does, and what must hold.
#pragma once

#include <utility>

#include "test/model/replica_model.hpp"

namespace drust::test::replica {

class Stepper {
 public:
  Stepper(State& state, const Config& config) : s_(state), config_(config) {}

  void take(const Doing& doing) {
    switch (doing.what) {
      case Do::Lend:
        --s_.tasks_left;
        s_.lent = 1;
        s_.work = Work::Runs;
        return;
      case Do::Write:
        write();
        return;
      case Do::Put:
        put();
        return;
      case Do::Return:
        s_.work = Work::Returned;
        complete();
        return;
      case Do::Resend:
        complete();
        return;
      case Do::Crash:
        crash();
        return;
      case Do::Drop:
        s_.dropped = 1;
        release(s_.owned);
        return;
      case Do::Deliver: {
        const Message message = s_.messages[doing.message];
        s_.messages[doing.message] = {};
        deliver(message);
        return;
      }
      case Do::Vanish:
        s_.messages[doing.message] = {};
        return;
      case Do::Lose:
        lose();
        return;
      case Do::Settle:
        s_.settled = 1;
        s_.lent = 0;  // rolled back: the pointer leads to what was lent
        return;
      case Do::Promote:
        s_.promoted = 1;
        return;
      case Do::FreeOrphans:
        free_orphans();
        return;
      case Do::Repeat:
        s_.repeated = 1;
        for (const Pointer& pointer : s_.freed) {
          if (pointer.slot != 0 && config_.bug != Bug::FreesNotRepeated) send_free(pointer);
        }
        return;
    }
  }

 private:
  void send(const Message& message) {
    for (Message& free : s_.messages) {
      if (free.kind != Kind::None) continue;
      free = message;
      return;
    }
    ensure(false, "the model's network is full: raise kMessages");
  }

  // A new block, or the lent one in place under a new colour.
  void write() {
    s_.work = Work::Wrote;
    ++s_.values;
    const bool in_place = config_.large && s_.owned.slot != 0;
    if (in_place) {
      Block& block = s_.blocks[s_.owned.slot - 1];
      block.value = s_.values;
      block.colour = ++s_.colours;
      s_.made = {s_.owned.slot, block.colour};
      return;
    }
    for (Byte slot = 0; slot < kSlots; ++slot) {
      if (s_.blocks[slot].colour != 0) continue;
      s_.blocks[slot] = {.colour = ++s_.colours, .value = s_.values};
      s_.made = {static_cast<Byte>(slot + 1), s_.colours};
      return;
    }
    ensure(false, "the model's partition is full: raise kSlots");
  }

  void put() {
    s_.work = Work::Puts;
    Block& block = s_.blocks[s_.made.slot - 1];
    if (config_.bug != Bug::MarkedAfterPut) block.has_replica = 1;
    s_.put_stamp = ++s_.stamps;
    send({Kind::Put, s_.made.slot, block.colour, block.value, s_.put_stamp});
  }

  void complete() { send({Kind::Completion, s_.made.slot, s_.made.colour}); }

  // A worker of the primary dies before its return: what it made is freed, in place the block is poisoned as
  // it is.
  void crash() {
    s_.lent = s_.put_stamp = 0;
    const bool in_place = s_.made.slot != 0 && s_.made.slot == s_.owned.slot;
    if (in_place) {
      s_.owned.colour = s_.made.colour;  // the loss report names it; a hand-over like any other
      s_.expected = s_.blocks[s_.made.slot - 1].value;
    } else if (s_.made.slot != 0) {
      free_on_primary(s_.made);
    }
    s_.made = {};
    s_.work = Work::None;
  }

  void free_on_primary(Pointer pointer) {
    Block& block = s_.blocks[pointer.slot - 1];
    if (block.colour != pointer.colour) return;
    const bool tell = block.has_replica != 0 && config_.bug != Bug::FreeNotForwarded;
    if (tell) send({.kind = Kind::Notice, .slot = pointer.slot, .stamp = ++s_.stamps});
    block = {};
  }

  // By the owner.
  void release(Pointer pointer) {
    if (pointer.slot == 0) {
      s_.home = 0;
      return;
    }
    send_free(pointer);
    if (s_.repeated != 0) return;
    for (Pointer& kept : s_.freed) {
      if (kept.slot != 0) continue;
      kept = pointer;
      return;
    }
    ensure(false, "the model remembers few frees");
  }

  void send_free(Pointer pointer) { send({Kind::Free, pointer.slot, pointer.colour}); }

  void deliver(const Message& m) {
    const Pointer pointer{m.slot, m.colour};
    switch (m.kind) {
      case Kind::Put:
        if (s_.promoted != 0 && config_.bug != Bug::PutAfterPromotion) return;  // its sender is no longer heard
        enter(m);
        if (s_.lost == 0) send({.kind = Kind::Stored, .slot = m.slot, .colour = m.colour, .stamp = m.stamp});
        return;
      case Kind::Stored:
        stored(m);
        return;
      case Kind::Completion:
        completion(pointer);
        return;
      case Kind::Arrived:  // older versions of what was handed over are needed by nobody
        send({.kind = Kind::Notice, .slot = m.slot, .stamp = m.stamp});
        return;
      case Kind::Free:
        if (s_.lost == 0) free_on_primary(pointer);
        if (s_.promoted != 0) free_on_backup(pointer);
        return;
      case Kind::Notice:
        if (s_.promoted != 0 && config_.bug != Bug::NoticeAfterPromotion) return;
        drop_older(m.slot, config_.bug == Bug::NoticeIgnoresStamp ? 255 : m.stamp);
        return;
      case Kind::Confirm:
        at_place(m.slot, [&](Place& place) { place.confirm(m.colour); });
        return;
      case Kind::None:
        return;
    }
  }

  void stored(const Message& m) {
    if (s_.lost != 0 || s_.work != Work::Puts || s_.made.colour != m.colour) return;  // its worker died
    s_.blocks[m.slot - 1].has_replica = 1;
    const bool supersedes = s_.owned.slot == m.slot;
    if (config_.bug != Bug::HandOverBeforePut) s_.work = Work::Returned;
    if (config_.bug != Bug::HandOverBeforePut) complete();
    if (supersedes && config_.bug == Bug::OlderDroppedEarly) {
      send({.kind = Kind::Notice, .slot = m.slot, .stamp = m.stamp});
    }
  }

  // Reaches the owner. The stamp of the hand-over is that of its put.
  void completion(Pointer pointer) {
    const bool known = s_.settled != 0 && config_.bug != Bug::PromotedUnsettled;
    if (known || s_.lent == 0 || pointer.colour == s_.owned.colour) return;
    const Pointer left = s_.owned;
    s_.owned = pointer;
    s_.lent = 0;
    s_.expected = s_.values;
    send({Kind::Confirm, pointer.slot, pointer.colour});
    if (left.slot != pointer.slot) release(left);
    if (s_.lost != 0) return;
    s_.work = Work::None;  // acknowledged
    s_.made = {};
    if (left.slot == pointer.slot) send({.kind = Kind::Arrived, .slot = pointer.slot, .stamp = s_.put_stamp});
    s_.put_stamp = 0;
  }

  using Place = protocol::ReplicaPlace<Byte>;  // which holds values where the runtime has blocks

  // Lets a rule of the protocol work on what the backup has of an address.
  template <class Rule>
  void at_place(Byte slot, const Rule& rule) {
    Version* versions = s_.versions[slot - 1];
    Place place;
    place.floor = s_.floors[slot - 1];
    for (int index = 0; index < kVersions; ++index) {
      const Version& version = versions[index];
      place.versions[static_cast<std::size_t>(index)] = {version.colour, version.stamp, version.confirmed != 0,
                                                         version.value};
    }
    rule(place);
    s_.floors[slot - 1] = static_cast<Byte>(place.floor);
    for (int index = 0; index < kVersions; ++index) {
      const Place::Version& version = place.versions[static_cast<std::size_t>(index)];
      versions[index] = {static_cast<Byte>(version.colour), version.held, static_cast<Byte>(version.stamp),
                         static_cast<Byte>(version.is_confirmed)};
    }
  }

  void enter(const Message& m) {
    at_place(m.slot, [&](Place& place) {
      if (config_.bug == Bug::OneVersionKept) place.versions = {};
      const std::uint64_t floor = place.floor;
      if (config_.bug == Bug::NoticeForgotten) place.floor = 0;
      place.enter({m.colour, m.stamp, false, m.value});
      place.floor = floor;
    });
  }

  void drop_older(Byte slot, int stamp) {
    at_place(slot, [&](Place& place) { place.drop_older(static_cast<std::uint64_t>(stamp)); });
  }

  void free_on_backup(Pointer pointer) {
    at_place(pointer.slot, [&](Place& place) {
      const bool takes_all = config_.bug == Bug::FreeTakesAll && place.find(pointer.colour) != nullptr;
      place.take_free(pointer.colour);
      if (takes_all) place.versions = {};
    });
  }

  void lose() {
    --s_.losses_left;
    s_.lost = 1;
    for (Block& block : s_.blocks)
      block = {};
    s_.work = Work::None;
    s_.made = {};
    s_.put_stamp = 0;
    for (Message& m : s_.messages) {  // what was on its way to it
      if (m.kind == Kind::Stored || m.kind == Kind::Arrived) m = {};
    }
  }

  void free_orphans() {
    s_.orphans_freed = 1;
    for (auto& versions : s_.versions) {
      const auto confirmed = [](const Version& version) { return version.confirmed != 0; };
      const bool owned = std::any_of(versions, versions + kVersions, confirmed);
      for (Version& version : versions) {
        if (!owned) version = {};
      }
    }
  }

  State& s_;
  const Config& config_;
};

inline void ReplicaModel::actions(const State& s, std::vector<Action>& out) const {
  const bool lives = s.lost == 0;
  if (s.dropped == 0 && s.lent == 0) {
    out.push_back({Do::Drop, 0});
    if (lives && s.tasks_left != 0 && s.work == Work::None) out.push_back({Do::Lend, 0});
  }
  if (s.work == Work::Runs) out.push_back({Do::Write, 0});
  if (s.work == Work::Wrote) out.push_back({Do::Put, 0});
  const bool early = config_.bug == Bug::HandOverBeforePut && s.work == Work::Puts;
  if (early) out.push_back({Do::Return, 0});
  if (s.work == Work::Returned && !s.on_its_way(Kind::Completion)) out.push_back({Do::Resend, 0});
  const bool in_place = s.made.slot != 0 && s.made.slot == s.owned.slot;
  const bool may_crash = s.work == Work::Runs || ((s.work == Work::Wrote || s.work == Work::Puts) && !in_place);
  if (lives && may_crash) out.push_back({Do::Crash, 0});
  if (lives && s.losses_left != 0) out.push_back({Do::Lose, 0});
  if (!lives) {
    if (s.settled == 0) out.push_back({Do::Settle, 0});
    const bool ready = s.settled != 0 || config_.bug == Bug::PromotedUnsettled;
    const bool confirmed = !s.on_its_way(Kind::Confirm) || config_.bug == Bug::OrphansUnconfirmed;
    if (ready && confirmed && s.promoted == 0) out.push_back({Do::Promote, 0});
    if (s.promoted != 0 && s.orphans_freed == 0) out.push_back({Do::FreeOrphans, 0});
    if (s.promoted != 0 && s.repeated == 0) out.push_back({Do::Repeat, 0});
  }
  for (Byte m = 0; m < s.message_count(); ++m) {
    const Kind kind = s.messages[m].kind;
    // A free for the lost server waits for whoever answers in its place.
    if (lives || kind != Kind::Free || s.promoted != 0) out.push_back({Do::Deliver, m});
    const bool from_primary = kind == Kind::Put || kind == Kind::Completion || kind == Kind::Notice;
    if (!lives && from_primary) out.push_back({Do::Vanish, m});
    // It was on its way to the lost one.
    if (!lives && kind == Kind::Free && s.repeated == 0) out.push_back({Do::Vanish, m});
  }
}

inline State ReplicaModel::next(const State& before, const Action& action) const {
  State after = before;
  Stepper(after, config_).take(action);
  std::sort(after.messages, after.messages + kMessages, [](const Message& a, const Message& b) {
    if ((a.kind == Kind::None) != (b.kind == Kind::None)) return b.kind == Kind::None;
    return std::memcmp(&a, &b, sizeof(Message)) < 0;
  });
  return after;
}

inline std::string ReplicaModel::describe(const State& s, const Action& action) const {
  static constexpr const char* kDo[] = {"the owner lends to a task on the primary",
                                        "the task writes",
                                        "the task puts the version on the backup",
                                        "the task returns",
                                        "the primary sends the completion again",
                                        "the task's worker dies",
                                        "the owner drops the object",
                                        "arrives",
                                        "is lost with the primary",
                                        "the primary is lost",
                                        "the owner ends its lends into the primary",
                                        "the backup takes the primary's place",
                                        "the backup frees what nobody confirmed",
                                        "the owner repeats its frees to the backup"};
  static constexpr const char* kKind[] = {"nothing", "a version", "stored", "the completion", "arrived", "a free",
                                          "a notice", "a confirmation"};
  const std::string verb = kDo[static_cast<int>(action.what)];
  if (action.what != Do::Deliver && action.what != Do::Vanish) return verb;
  const Message& m = s.messages[action.message];
  return std::string(kKind[static_cast<int>(m.kind)]) + " of address " + std::to_string(m.slot) + " colour " +
         std::to_string(m.colour) + " stamp " + std::to_string(m.stamp) + " " + verb;
}

namespace properties {

// Once the backup answers, the owner's pointer leads to what it saw last.
inline bool value_survives(const State& s) {
  if (s.dropped != 0 || s.owned.slot == 0) return true;
  if (s.lost == 0) {
    const Block& block = s.blocks[s.owned.slot - 1];
    return s.lent != 0 || (block.colour == s.owned.colour && block.value == s.expected);
  }
  if (s.promoted == 0) return true;
  const Version* version = s.find(s.owned);
  return version != nullptr && version->value == s.expected;
}

inline bool nothing_stays(const State& s) {
  const bool quiet = s.dropped != 0 && s.message_count() == 0 && s.work == Work::None;
  if (!quiet || (s.lost != 0 && (s.orphans_freed == 0 || s.repeated == 0))) return true;
  for (const Block& block : s.blocks) {
    if (block.colour != 0) return false;
  }
  for (const auto& versions : s.versions) {
    for (const Version& version : versions) {
      if (version.colour != 0) return false;
    }
  }
  return s.home == 0;
}

inline bool nothing_is_stuck(const State& s) {
  return s.dropped != 0 && s.message_count() == 0 && s.work == Work::None;
}

inline bool a_promoted_value_is_read(const State& s) {
  return s.promoted != 0 && s.dropped == 0 && s.owned.slot != 0;
}
inline bool two_versions_at_an_address(const State& s) {
  return std::any_of(s.versions, s.versions + kSlots, [](const auto& v) { return v[1].colour != 0; });
}
inline bool a_late_notice_finds_a_newer_version(const State& s) {
  for (const Message& m : s.messages) {
    if (m.kind == Kind::Notice && s.versions[m.slot - 1][0].stamp > m.stamp) return true;
  }
  return false;
}
inline bool a_version_comes_after_the_promotion(const State& s) {
  return s.promoted != 0 && s.on_its_way(Kind::Put);
}
inline bool an_orphan(const State& s) {
  if (s.promoted == 0 || s.orphans_freed != 0) return false;
  for (const auto& versions : s.versions) {
    if (versions[0].colour != 0 && versions[0].confirmed == 0 && versions[1].colour == 0) return true;
  }
  return false;
}

}  // namespace properties

inline std::vector<Property<State>> ReplicaModel::properties() const {
  using namespace properties;
  std::vector<Property<State>> all = {
      {When::Always, "what its owner saw is there, on the server or on its backup", value_survives},
      {When::Always, "when all is quiet nothing is left, on the server or on its backup", nothing_stays},
      {When::AtRest, "nothing is stuck", nothing_is_stuck},
  };
  if (config_.only != nullptr) {
    std::erase_if(all, [&](const Property<State>& p) { return std::string(p.claim) != config_.only; });
  }
  if (config_.bug != Bug::None || config_.losses == 0) return all;
  all.push_back({When::Sometimes, "a value is read from the backup", a_promoted_value_is_read});
  all.push_back({When::Sometimes, "a version comes after the promotion", a_version_comes_after_the_promotion});
  all.push_back({When::Sometimes, "a version that nobody owns is on the backup", an_orphan});
  all.push_back({When::Sometimes, "two versions of an address are on the backup", two_versions_at_an_address});
  if (!config_.large) {
    all.push_back(
        {When::Sometimes, "a late notice finds a newer version", a_late_notice_finds_a_newer_version});
  }
  return all;
}

}  // namespace drust::test::replica
