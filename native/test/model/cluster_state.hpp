// cluster_state.hpp: a whole small cluster in half a kilobyte: blocks, copies, messages, processes, and what
// they know.
//
// Three servers of eight blocks; one owner process on server 0 and up to three tasks; one object, alone or as
// a parent of two children (child 1 owned, child 2 tied). Addresses are few, so that they are reused at once.
// Values are version numbers; kTorn is a value half written. `expected` is the ghost of the model: the value
// a process must see in each object, by the rules of ownership alone.
//
// Everything is unsigned char: a State has no padding and its bytes are its identity (explorer.hpp).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "base/ensure.hpp"
#include "protocol/ownership.hpp"
#include "protocol/ownership_access.hpp"
#include "protocol/ownership_lend.hpp"

namespace drust::test {

using Byte = std::uint8_t;

inline constexpr int kServers = 3;
inline constexpr int kSlots = 8;   // blocks a server
inline constexpr int kCopies = 3;  // copy table entries a server
inline constexpr int kAgents = 4;  // the owner and three tasks
inline constexpr int kObjects = 3;
inline constexpr int kMessages = 8;
inline constexpr int kIds = 4;  // tasks in all, counted from 1
inline constexpr int kIncarnation = 64;  // colours of one incarnation of a server
inline constexpr Byte kTorn = 255;
inline constexpr Byte kGarbage = 254;  // bytes that have not arrived

// A global pointer. Addresses count from 1, slot by slot, server by server; 0 is null.
struct Ref {
  Byte address = 0;
  Byte colour = 0;
  [[nodiscard]] explicit operator bool() const { return address != 0; }
  friend bool operator==(const Ref&, const Ref&) = default;
};
[[nodiscard]] inline Ref make_ref(int address, int colour) {
  return {static_cast<Byte>(address), static_cast<Byte>(colour)};
}
[[nodiscard]] inline int server_of(Ref ref) { return (ref.address - 1) / kSlots; }

struct Content {
  Byte value = 0;
  Ref child[2] = {};  // the pointer table
};

struct Block {
  Byte colour = 0;  // 0: free
  Byte tag = 0;     // the task that allocated it, 0: the owner
  Content content = {};
};

struct Copy {
  Ref ref = {};     // null: empty
  Byte leader = 0;  // agent + 1 while its bytes are fetched, then 0
  Content content = {};
};

enum class Kind : Byte {
  None,
  Read,
  ReadReply,
  Free,
  Completion,
  Loss,
  Acknowledge,
  Reap,
  Update,
  Invalidate
};

struct Message {
  Kind kind = Kind::None;
  Byte to = 0;      // server
  Byte agent = 0;   // who asked, or whose completion
  Byte id = 0;      // that agent's task id: a reply to a dead one finds another id
  Ref ref = {};     // what is read, freed, returned
  Byte object = 0;  // Read: which object; Reap: the tasks, as a mask
  Byte mode = 0;    // Read: Mode; Loss: poisoned; Reap: free trees
  Byte tied = 0;    // ReadReply: the value of the tied child that came along
  Content content = {};
};

enum class Stage : Byte { None, Wait, Held, Torn };
enum class Role : Byte { Free, Owner, Reader, Writer, Receiver };

struct Handle {  // an OwnerState in three bytes
  Byte phase_writer_ceiling = 0;
  Byte flags = 0;
  Byte counts = 0;

  [[nodiscard]] protocol::OwnerState get() const {
    protocol::OwnerState s;
    s.phase = static_cast<protocol::Phase>(phase_writer_ceiling & 7);
    s.writer = static_cast<protocol::Writer>(phase_writer_ceiling >> 3 & 3);
    s.ceiling = static_cast<protocol::Ceiling>(phase_writer_ceiling >> 5);
    s.flags = flags;
    s.local_readers = counts & 15U;
    s.shared_lends = counts >> 4U;
    return s;
  }
  void put(const protocol::OwnerState& s) {
    ensure(s.local_readers < 16 && s.shared_lends < 16 && s.parts_out == 0, "the model's counters are small");
    phase_writer_ceiling =
        static_cast<Byte>(static_cast<unsigned>(s.phase) | static_cast<unsigned>(s.writer) << 3U |
                          static_cast<unsigned>(s.ceiling) << 5U);
    flags = s.flags;
    counts = static_cast<Byte>(s.local_readers | s.shared_lends << 4U);
  }
};

struct Agent {
  Role role = Role::Free;
  Byte alive = 0;
  Byte server = 0;
  Byte lender = 0;  // an agent
  Byte id = 0;      // the task's
  Byte base = 0;    // the object its root is
  Ref root = {};    // its pointer to that
  Byte phase = 0;   // TaskRecord
  Byte forbidden = 0;
  Byte orphaned = 0;
  Byte below = 0;
  Byte lend_ended = 0;  // the lender applied the outcome
  Byte lost = 0;        // its server is lost, and the task's record there: only what the lender noted is left
  Byte loss_below = 0;  // a lend below it, at any depth, went with a server: see cluster_loss.hpp
  Ref lent_as = {};     // the lender's: the pointer as it was lent
  Byte child = 0;       // the child being borrowed, 1 or 2; 0: none
  Stage stage[2] = {};  // of the root's borrow and of the child's
  Byte mode[2] = {};
  Byte expected[kObjects] = {};
  Byte tree = 0;       // task ids that committed into this one, and itself
  Ref lent = {};       // the record's: the block it was lent, under the colour that has now
  Ref queued[6] = {};  // frees that wait for the outcome of the lend
  Byte queued_count = 0;
  Byte writes_left = 0;
  Byte lends_left = 0;
  Handle handle[kObjects] = {};
};

// Breaches seen while stepping; each is a property.
enum Breach : Byte {
  kLiveBlockLost = 1U << 0,    // a reader with a right to it found it gone
  kNeedlessMessage = 1U << 1,  // local access, or a write, sent a message it must not
  kFreedByStranger = 1U << 2,  // a free hit a block under a colour that it did not name
  kTwoOutcomes = 1U << 3,      // a lend ended twice
};

struct State {
  Block blocks[kServers * kSlots] = {};
  Copy copies[kServers][kCopies] = {};
  Message messages[kMessages] = {};
  Agent agents[kAgents] = {};
  Byte colours[kServers] = {};
  Byte values = 0;  // last value written
  Byte ids = 0;     // last task id
  Byte operations_left = 0;
  Byte crashes_left = 0;
  Byte duplicates_left = 0;
  Byte owner_deaths_left = 0;
  Byte losses_left = 0;
  Byte restarts_left = 0;
  Byte orphans_freed = 0;             // what the owner's process left is freed
  Byte swept = 0;                     // what was lent from the owner's lost server is freed
  Byte lost_servers = 0;              // mask: down now
  Byte ever_lost = 0;                 // mask: down now or back since
  Byte noticed[kServers] = {};        // a lost server's: mask of the servers that know
  Byte incarnations[kServers] = {};   // how often a server came back
  Byte outermost[kIds + 1] = {};      // in each tag: the task above it, or itself, that an owner spawned
  Byte breaches = 0;

  [[nodiscard]] Block& block(Ref ref) { return blocks[ref.address - 1]; }
  [[nodiscard]] const Block& block(Ref ref) const { return blocks[ref.address - 1]; }
  [[nodiscard]] bool live(Ref ref) const { return ref && block(ref).colour == ref.colour; }

  [[nodiscard]] bool down(int server) const { return (lost_servers >> server & 1) != 0; }
  // Its server is lost, or is back without it.
  [[nodiscard]] bool went_with_server(Ref ref) const {
    const int server = server_of(ref);
    return ref && (down(server) || ref.colour / kIncarnation < incarnations[server]);
  }
  // The same as `server` knows it: such a pointer is refused without a message.
  [[nodiscard]] bool known_lost(int server, Ref ref) const {
    return went_with_server(ref) && (noticed[server_of(ref)] >> server & 1) != 0;
  }

  // Every server knows that this process is lost with its own, and nothing that it lent is in use.
  [[nodiscard]] bool fenced(int index) const {
    const int lost = agents[index].server;
    for (int server = 0; server < kServers; ++server) {
      if (server != lost && (noticed[lost] >> server & 1) == 0) return false;
    }
    return std::none_of(agents + 1, agents + kAgents, [index](const Agent& agent) {
      return agent.role != Role::Free && agent.lender == index;
    });
  }
  // The owner's lends; a transfer is none.
  [[nodiscard]] bool lends_out() const {
    return std::any_of(agents + 1, agents + kAgents, [](const Agent& agent) {
      const bool lend = agent.role == Role::Reader || agent.role == Role::Writer;
      return lend && agent.lender == 0 && agent.lend_ended == 0;
    });
  }

  [[nodiscard]] Copy* find_copy(int server, Ref ref) {
    for (Copy& copy : copies[server]) {
      if (copy.ref == ref) return &copy;
    }
    return nullptr;
  }
  [[nodiscard]] const Copy* find_copy(int server, Ref ref) const {
    return const_cast<State*>(this)->find_copy(server, ref);
  }
  [[nodiscard]] const Copy* ready_copy(int server, Ref ref) const {
    const Copy* copy = find_copy(server, ref);
    return copy != nullptr && copy->leader == 0 ? copy : nullptr;
  }

  [[nodiscard]] int message_count() const {
    int count = 0;
    while (count < kMessages && messages[count].kind != Kind::None)
      ++count;
    return count;
  }
  void send(const Message& message) {
    const int count = message_count();
    ensure(count < kMessages, "the model's network is full: raise kMessages");
    messages[count] = message;
  }
  void take(int index) {
    for (int i = index; i + 1 < kMessages; ++i)
      messages[i] = messages[i + 1];
    messages[kMessages - 1] = {};
  }
  // The network keeps no order: sorted, so that states that differ only in it are one.
  void sort_messages() {
    std::sort(messages, messages + message_count(),
              [](const Message& a, const Message& b) { return std::memcmp(&a, &b, sizeof(Message)) < 0; });
  }

  // Where the process sees an object's content: its own partition, or this host's copy; null if neither has
  // it.
  [[nodiscard]] const Content* seen(const Agent& agent, Ref ref) const {
    if (!ref) return nullptr;
    if (server_of(ref) == agent.server) return live(ref) ? &block(ref).content : nullptr;
    const Copy* copy = ready_copy(agent.server, ref);
    return copy != nullptr ? &copy->content : nullptr;
  }
  [[nodiscard]] Ref pointer(const Agent& agent, int object) const {
    if (object == agent.base) return agent.root;
    const Content* parent = seen(agent, agent.root);
    return parent != nullptr ? parent->child[object - 1] : Ref{};
  }
};
static_assert(std::has_unique_object_representations_v<State>);

}  // namespace drust::test
