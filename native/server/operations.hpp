// What a server does for an authenticated peer: one function an operation, over the partition, the heap and
// the task queue. No socket, no thread of its own; called by every serving thread at once.
//
// A request is served in two steps, because a body goes straight to where it will stay: admit() decides that
// from the header alone (a new block, a small buffer, or nowhere because the request is refused), execute()
// does the work once the body is complete. Nothing that others can see changes before execute().
//
// A peer may name any address: Partition::find tells what is live there. What a version looks like (extent,
// buffer table) is read, and then the version is confirmed again: a colour is never reused, so what was read
// in between belonged to it.
//
// Lock table
//   writing_   shared by write_region while it puts bytes in place, exclusive by free_blocks while it frees:
//              so a peer cannot aim a write at a block, free it, and hit whoever got the address next.
//              (Owners on this host free only after the lend has ended, by protocol.)
// Rejected: serving large reads with sendfile(): the kernel would take the bytes after the version was
// confirmed.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/heap.hpp"
#include "protocol/wire.hpp"
#include "server/chunks.hpp"
#include "server/replicas.hpp"
#include "sync/bury.hpp"
#include "sync/dict.hpp"
#include "sync/lock.hpp"
#include "sync/who.hpp"
#include "tasks/queue.hpp"

namespace drust::server {

// Where a request's body is received. Belongs to one connection.
struct Intake {
  Status refusal;           // not ok: the body is dropped as it arrives, and this is the answer
  Address block;            // allocated for the body, unpublished; null if none
  bool has_header = false;  // the body begins with the sender's block header, which goes to `header`
  alignas(64) std::array<std::byte, wire::kBlockBytesMin> header{};
  std::span<std::byte> rest;      // the body, or what follows its header
  std::vector<std::byte> buffer;  // owns `rest` if there is no block
  // Replicas received since the last commit of this connection, and why they will be refused, if they will.
  std::vector<StagedReplica> batch;
  Status batch_refusal;
  // Likewise of a batch of submissions: how many are queued, and why the others are not.
  std::uint64_t submitted = 0;
  Status submit_refusal;
};

// A request that waits for its turn at a shared object, on behalf of a process of another server.
struct SharedWait {
  GlobalPointer object;
  wire::SharedVerb verb = wire::SharedVerb::lock;
  sync::Who who;
  std::uint64_t token = 0;
  std::uint32_t place = 0;  // in the line
  std::uint64_t version = 0;  // that is known there
  bool recovers = false;
  std::uint32_t wait_ms = 0;
  GlobalPointer message;  // to be sent
};

// What goes back.
struct Answer {
  enum class Kind : std::uint8_t {
    none,       // the operation has no reply
    reply,      // header only, or a refusal with its sentence
    served,     // a read: `head` and then `chunks` of the version `block`, and the trailer
    group,      // a read of `blocks`, each as it is served
    control,    // the control plane will answer; the body is in Intake::buffer
    waits,      // the attendant will answer: `wait`
    malformed,  // the peer cannot be trusted: close
  };
  Kind kind = Kind::reply;
  Status status;
  GlobalPointer pointer;  // of a reply; of a served block, if it is not the block's own
  GlobalPointer block;
  SharedWait wait;
  Chunks chunks;
  std::vector<GlobalPointer> blocks;  // to be served one after the other, each with its trailer
  std::vector<std::byte> body;  // of a reply without a sentence
  std::uint32_t head_bytes = 0;
  alignas(64) std::array<std::byte, wire::kBlockBytesMin> head{};
};

class Operations {
 public:
  // What this server has to tell others; none of it may wait.
  struct Elsewhere {
    // A block on another server that goes with a freed one; wire::FreeItem's flags.
    std::function<void(const GlobalPointer&, std::uint64_t flags)> free;
    // A value of another server is owned here now.
    std::function<void(const GlobalPointer&)> confirm = [](const GlobalPointer&) {};
    // Of a block this server answered for in another's place.
    std::function<void(Address)> drop_replica = [](Address) {};
  };
  Operations(heap::Heap& heap, tasks::Queue& queue, Elsewhere elsewhere);

  // `header` has passed wire::check.
  void admit(const wire::RequestHeader& header, Intake& intake);
  Answer execute(const wire::RequestHeader& header, Intake& intake);
  // Gives back what admit() set aside: the sender died before its body was complete, or execute() did not
  // need it.
  void discard(Intake& intake) noexcept;
  // The same at the end of a connection: what it has not committed goes too.
  void close(Intake& intake) noexcept;

  // That server is lost, up to that incarnation: its processes' tasks are refused from now on, and those that were
  // taken before are in the queue.
  void refuse_tasks(ServerId lost, std::uint16_t incarnation);
  // Whether the version is still the live one, looked at after everything before the call.
  [[nodiscard]] bool is_live(const GlobalPointer& block) const noexcept;
  void count(heap::Counter counter) const noexcept;
  [[nodiscard]] ServerId server() const noexcept;

  // One an operation; public so that each can be tested alone.
  Answer read_block(const wire::RequestHeader& header);
  // group_reads.cpp
  Answer read_blocks(std::span<const std::byte> items);
  // `head` and `chunks` for one of `answer.blocks`; false if it is gone, and then they stand for as many zeros.
  bool open_block(const GlobalPointer& block, Answer& answer);
  Answer read_table(const wire::RequestHeader& header) const;
  Answer read_region(const wire::RequestHeader& header);
  Answer write_region(const wire::RequestHeader& header, const Intake& intake);
  Answer free_blocks(std::span<const std::byte> items);
  Answer put_block(Intake& intake);
  Answer submit(const wire::RequestHeader& header, Intake& intake);
  Answer complete(const wire::RequestHeader& header, Intake& intake);
  Answer replicate(const wire::RequestHeader& header, Intake& intake);
  Answer withdraw(const GlobalPointer& record);
  // shared_calls.cpp
  Answer shared(const wire::RequestHeader& header, Intake& intake);
  // Whether the turn of one that waits has come; `is_over`: an answer now, whatever it is.
  [[nodiscard]] bool look_again(const SharedWait& wait, bool is_over, Answer& answer);
  // A waiter that did not ask again: it leaves the line.
  void lapse(const SharedWait& wait);
  // Frees what is not held any more.
  void free_unheld();

  // Where a version is in this partition: it itself, or its replica here if its server was lost and this one
  // answers in its place. Not found otherwise.
  [[nodiscard]] Result<GlobalPointer> resolve(const GlobalPointer& pointer) const;
  [[nodiscard]] Replicas& replicas() noexcept { return replicas_; }
  // Frees a version of a server whose place this one has taken, as free_blocks would.
  void free_promoted(const GlobalPointer& primary, bool shallow);

  // What the dead of other servers had in this server's shared objects; `lost`: with their server. shared_calls.cpp
  void bury(const sync::IsDead& is_dead, bool lost);
  void bury(sync::Who dead);
  // An answer whose asker has hung up: a message in it goes.
  void drop(const Answer& answer);

 private:
  void admit_block(std::uint64_t body_bytes, Intake& intake);
  void admit_staging(std::uint64_t body_bytes, Intake& intake);
  Result<Chunks> locate(const wire::RequestHeader& header) const;
  Result<GlobalPointer> publish(Intake& intake);
  void take_notice(const wire::FreeItem& item);
  Answer lock_shared(const wire::RequestHeader& header, const GlobalPointer& object);
  Answer unlock_shared(const wire::RequestHeader& header, const GlobalPointer& object, Intake& intake);
  Answer read_shared(const wire::RequestHeader& header, const GlobalPointer& object);
  void answer_reading(const SharedWait& wait, std::uint32_t slot, Answer& answer);
  void answer_value(const SharedWait& wait, const sync::LockWords& lock, Answer& answer);
  Answer abandon_shared(const SharedWait& wait);
  void answer_locked(const SharedWait& wait, Answer& answer);
  Answer send_shared(const wire::RequestHeader& header, const GlobalPointer& object, Intake& intake);
  Answer receive_shared(const wire::RequestHeader& header, const GlobalPointer& object);
  // dict_calls.cpp
  Answer step_dict(const wire::RequestHeader& header, const GlobalPointer& object, Intake& intake);
  Answer put_dict(sync::Shard& shard, sync::Shard::When when, Colour version, Intake& intake);
  [[nodiscard]] bool look_at_channel(const SharedWait& wait, bool is_over, Answer& answer);
  void serve_value(const GlobalPointer& value, Answer& answer);
  void free_tree(const GlobalPointer& local);
  Status queue_task(const wire::RequestHeader& header, Intake& intake);
  [[nodiscard]] std::vector<GlobalPointer> owned_elsewhere(const GlobalPointer& local) const;

  heap::Heap& heap_;
  tasks::Queue& queue_;
  Elsewhere elsewhere_;
  std::mutex buried_mutex_;       // protects buried_
  std::deque<sync::Who> buried_;  // the last of those told of; what they asked for before may come after that
  Replicas replicas_;
  std::shared_mutex writing_;  // see the lock table
  std::shared_mutex losing_;   // protects refused_: shared while a task is queued
  std::array<std::uint16_t, kServersPerClusterMax> refused_{};  // incarnations up to which a server is lost
};

}  // namespace drust::server
