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
#include <functional>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/heap.hpp"
#include "protocol/wire.hpp"
#include "server/chunks.hpp"
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
};

// What goes back.
struct Answer {
  enum class Kind : std::uint8_t {
    none,       // the operation has no reply
    reply,      // header only, or a refusal with its sentence
    served,     // a read: `head` and then `chunks` of the version `block`, and the trailer
    group,      // a read of `blocks`, each as it is served
    control,    // the control plane will answer; the body is in Intake::buffer
    malformed,  // the peer cannot be trusted: close
  };
  Kind kind = Kind::reply;
  Status status;
  GlobalPointer pointer;
  GlobalPointer block;
  Chunks chunks;
  std::vector<GlobalPointer> blocks;  // to be served one after the other, each with its trailer
  std::uint32_t head_bytes = 0;
  alignas(64) std::array<std::byte, wire::kBlockBytesMin> head{};
};

class Operations {
 public:
  using FreeElsewhere = std::function<void(const GlobalPointer&, std::uint64_t flags)>;  // wire::FreeItem's
  // `free_elsewhere` gets blocks on other servers that go with freed ones; it must not wait.
  Operations(heap::Heap& heap, tasks::Queue& queue, FreeElsewhere free_elsewhere);

  // `header` has passed wire::check.
  void admit(const wire::RequestHeader& header, Intake& intake);
  Answer execute(const wire::RequestHeader& header, Intake& intake);
  // Gives back what admit() set aside: the sender died before its body was complete, or execute() did not
  // need it.
  void discard(Intake& intake) noexcept;

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
  Answer read_region(const wire::RequestHeader& header);
  Answer write_region(const wire::RequestHeader& header, const Intake& intake);
  Answer free_blocks(std::span<const std::byte> items);
  Answer put_block(Intake& intake);
  Answer submit(const wire::RequestHeader& header, Intake& intake);
  Answer complete(const wire::RequestHeader& header, Intake& intake);

 private:
  void admit_block(std::uint64_t body_bytes, Intake& intake);
  void admit_staging(std::uint64_t body_bytes, Intake& intake);
  Result<Chunks> locate(const wire::RequestHeader& header) const;
  Result<GlobalPointer> publish(Intake& intake);

  heap::Heap& heap_;
  tasks::Queue& queue_;
  FreeElsewhere free_elsewhere_;
  std::shared_mutex writing_;  // see the lock table
};

}  // namespace drust::server
