// replica_model.hpp: one object whose versions are kept on a backup server too, and the loss of the server
// they are on.
//
// Purpose. What another server could have seen must be there after its server is lost, and nothing may stay on
// the backup for ever. Three servers: the owner's (it has no backup of its own), the *primary*, where tasks
// make the versions of the object, and the *backup* of the primary.
//
// Idea. A version is put on the backup before the hand-over that tells of it leaves (here: a task's
// completion). The backup keeps two versions of an address, because one that was written in place arrives
// before its owner hears of it. Stamps, drawn on the primary, order what its processes say: a notice ("free",
// "the owner has heard of a newer one") drops what is older than itself, however late it or that comes: the
// worker that puts a version may die meanwhile, so the block is marked before, and the backup remembers the
// last notice of an address. A receiver *confirms* what it now owns; what nobody confirmed is freed after a
// promotion. Before a promotion every lender has settled its lends into the lost server and its confirmations
// have arrived (the round of the endpoint table). Frees that the lost server may not have passed on are
// repeated to the backup.
//
// What the backup does with each message is decided by protocol/replication.hpp, as in the runtime. Messages
// arrive in any order; those of a lost server arrive late or never. Rejected: the whole of
// cluster_model.hpp with replicas in it (a product of states that have nothing to do with each other).
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "base/ensure.hpp"
#include "protocol/replication.hpp"
#include "test/explorer.hpp"

namespace drust::test::replica {

using Byte = std::uint8_t;

inline constexpr int kSlots = 3;     // addresses on the primary
inline constexpr int kVersions = 2;  // of an address, on the backup
inline constexpr int kMessages = 8;
inline constexpr int kFrees = 4;

enum class Bug {
  None,
  HandOverBeforePut,     // the completion leaves before the backup has the version
  FreeNotForwarded,      // the primary frees a block and does not tell its backup
  NoticeIgnoresStamp,    // a late notice drops whatever is at its address
  MarkedAfterPut,        // a block is marked as replicated when the backup has answered
  NoticeForgotten,       // the backup takes a version that is older than a notice it has had
  OneVersionKept,        // a version replaces the one before at once
  OlderDroppedEarly,     // the older version goes before its owner has heard of the newer
  PutAfterPromotion,     // the backup takes versions of a server whose place it has taken
  NoticeAfterPromotion,  // or hears what it still has to say about them
  PromotedUnsettled,     // the backup takes the place while a completion may still count
  OrphansUnconfirmed,    // what nobody confirmed yet is freed while a confirmation is on its way
  FreesNotRepeated,      // a free that died with the primary is not sent to its backup
  FreeTakesAll,          // a free takes the other version at its address with it, even one that is owned
};

struct Config {
  bool large = false;  // written in place where it lies
  Byte tasks = 2;      // one after the other
  Byte losses = 1;
  Bug bug = Bug::None;
  const char* only = nullptr;
};

struct Block {  // of the primary
  Byte colour = 0;
  Byte value = 0;
  Byte has_replica = 0;
};
struct Version {
  Byte colour = 0;  // 0: none
  Byte value = 0;
  Byte stamp = 0;
  Byte confirmed = 0;
};
enum class Kind : Byte { None, Put, Stored, Completion, Arrived, Free, Notice, Confirm };
struct Message {
  Kind kind = Kind::None;
  Byte slot = 0;
  Byte colour = 0;
  Byte value = 0;
  Byte stamp = 0;
  friend bool operator==(const Message&, const Message&) = default;
};
struct Pointer {  // slot + 1 on the primary; 0: the owner's own server
  Byte slot = 0;
  Byte colour = 0;
};
enum class Work : Byte { None, Runs, Wrote, Puts, Returned };

struct State {
  Block blocks[kSlots] = {};
  Version versions[kSlots][kVersions] = {};  // on the backup, oldest first
  Byte floors[kSlots] = {};                  // on the backup: the stamp of the last notice
  Message messages[kMessages] = {};
  Pointer owned = {};
  Byte expected = 1;
  Byte home = 1;  // the value in the owner's own partition, 0: it has moved
  Byte lent = 0;
  Work work = Work::None;  // of the task
  Pointer made = {};
  Byte put_stamp = 0;
  Byte tasks_left = 0;
  Byte losses_left = 0;
  Byte values = 1;
  Byte colours = 0;
  Byte stamps = 0;
  Byte settled = 0;   // the owner knows of the loss and has ended its lend
  Byte promoted = 0;  // the backup answers
  Byte orphans_freed = 0;
  Byte repeated = 0;
  Byte dropped = 0;
  Byte lost = 0;
  Pointer freed[kFrees] = {};  // by the owner, on the primary: to be repeated

  [[nodiscard]] int message_count() const {
    const auto there = [](const Message& m) { return m.kind != Kind::None; };
    return static_cast<int>(std::count_if(messages, messages + kMessages, there));
  }
  [[nodiscard]] bool on_its_way(Kind kind) const {
    return std::any_of(messages, messages + kMessages, [kind](const Message& m) { return m.kind == kind; });
  }
  [[nodiscard]] const Version* find(Pointer pointer) const {
    for (const Version& version : versions[pointer.slot - 1]) {
      if (version.colour != 0 && version.colour == pointer.colour) return &version;
    }
    return nullptr;
  }
};
static_assert(std::has_unique_object_representations_v<State>);

enum class Do : Byte {
  Lend,
  Write,
  Put,
  Return,
  Resend,
  Crash,  // of the task's worker: its lend is rolled back
  Drop,
  Deliver,
  Vanish,  // with the connection of the lost server
  Lose,
  Settle,
  Promote,
  FreeOrphans,
  Repeat,
};
struct Doing {
  Do what = Do::Lend;
  Byte message = 0;
};

class ReplicaModel {
 public:
  using Config = replica::Config;
  using State = replica::State;
  using Action = Doing;

  explicit ReplicaModel(const Config& config) : config_(config) {}

  void initial_states(std::vector<State>& out) const {
    State s;
    s.tasks_left = config_.tasks;
    s.losses_left = config_.losses;
    out.push_back(s);
  }
  void actions(const State& s, std::vector<Action>& out) const;
  State next(const State& before, const Action& action) const;
  std::string describe(const State& s, const Action& action) const;
  std::vector<Property<State>> properties() const;

 private:
  Config config_;
};

}  // namespace drust::test::replica

#include "test/model/replica_steps.hpp"
