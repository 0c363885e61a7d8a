// The calling thread's way to other servers: a small pool of authenticated blocking connections a server,
// used by the thread that asks (a hand-over thread costs 2-3x). Reads land directly in the destination block
// in this partition; writes leave directly from it. Frees are queued and leave in batches: with the next
// request to that server, when a batch is full, or by the housekeeping thread a few milliseconds later (which
// sleeps while nothing is queued). A batch is done with when an answer behind it has come: to the request that took it
// along, or, where none did, to a ping in the same packet. Else it is sent again, until its server is known to be lost.
//
// Every call ends within kPeerTimeoutMs of the peer's silence (a stopped or unplugged peer), and at once when
// the peer's process is gone: Code::server_lost. A pooled connection that turns out to be dead is replaced
// once by a fresh one, for the operations that may be executed twice (all but put_block, submit, withdraw and
// shared, for which the connection is tested first). Frees for a server that is lost are dropped: it took its
// blocks with it.
//
// Where the lost server has a backup (Endpoint::backup), operations that may be executed twice wait instead, at
// most kPromotionWaitMs, until the endpoint table names the server that answers in its place. What submit()
// and complete() hand over is on this server's backup before they leave (replicator.cpp).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/heap.hpp"
#include "protocol/wire.hpp"
#include "server/pool.hpp"

namespace drust::server {

using Token = std::vector<std::byte>;  // kTokenBytes of secret

struct PeersOptions {
  Token token;
  std::uint32_t timeout_ms = kPeerTimeoutMs;
  Dial dial{};              // none: over TCP
  bool counts_questions = true;  // not those that servers ask each other all the time: nobody's work caused them
  bool has_sweeper = true;  // a thread sends what frees no request takes along; else flush_frees() must be called
};

// A block of this partition, as the replica of `primary` (itself, or a block of a server whose place was taken).
struct Replica {
  GlobalPointer primary;
  GlobalPointer local;
  bool is_confirmed = false;
};

class Peers {
 public:
  Peers(heap::Heap& heap, PeersOptions options);  // endpoints come from the partition's table
  ~Peers();                                       // flushes frees, closes connections
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;

  // One round trip: the block at `remote` as a new block here, fresh colour. Its children still belong to the
  // original.
  // `lent`: this will be a borrower's version, the original its pre-image.
  Result<GlobalPointer> read_block(const GlobalPointer& remote, bool lent = false);
  // One round trip for each kBlocksPerReadMax blocks of one server, usually one in all: as read_block, for
  // the children tied to a parent. `stale` if one of them is gone: then none is kept. group_calls.cpp
  Result<std::vector<GlobalPointer>> read_blocks(std::span<const GlobalPointer> remote);
  // One round trip: chunks gathered at the peer, contiguous in `destination`.
  Status read_region(const GlobalPointer& remote, const wire::Region& region,
                     std::span<std::byte> destination);
  // One round trip: contiguous `source` scattered into place at the peer, the colour there unchanged. stale
  // if it moved on.
  Status write_region(const GlobalPointer& remote, const wire::Region& region,
                      std::span<const std::byte> source);
  // A copy of a local block on another server, owned by that server's process slot.
  Result<GlobalPointer> put_block(ServerId server, const GlobalPointer& local);
  // The same from private memory: `head` is the block up to its last buffer, which is `data`.
  Result<GlobalPointer> put_bytes(ServerId server, std::span<const std::byte> head, std::span<const std::byte> data);
  // Queue the task block there, its completion to come to `record` (a record in some partition, ours
  // usually). server_lost leaves open whether it was queued.
  Status submit(ServerId server, const GlobalPointer& task, const GlobalPointer& record, std::uint32_t retries = 0);
  // As submit(), for at most kSubmitsPerBatchMax tasks in one message and one reply; how many are queued: the first
  // ones. server_lost leaves open which.
  struct Submission {
    GlobalPointer task;
    GlobalPointer record;
    std::uint32_t retries = 0;
  };
  Result<std::size_t> submit_all(ServerId server, std::span<const Submission> tasks);
  // Whether that server has the task of this record, queued or running: ok, or not_found.
  Status inquire(ServerId server, const GlobalPointer& record);
  // Of the version that lives at the address of `block`, wherever that is: 0 messages here, else 1 round trip.
  struct Table {
    GlobalPointer now;
    std::uint32_t before = 0;  // BlockHeader::before
    bool is_being_written = false;  // heap::kWriting: that colour may be half another value already
    std::vector<heap::ChildPointer> children;
  };
  Result<Table> read_table(const GlobalPointer& block);
  // Takes back the task of this record, if it waits there: ok, or not_found. server_lost leaves open whether it was.
  Status withdraw(ServerId server, const GlobalPointer& record);
  // Hand a completion block (or none: null) to the record's server. `state` is tasks::RecordState. ok also if
  // the record was settled before, or is gone.
  Status complete(const GlobalPointer& record, std::uint32_t state, const GlobalPointer& completion);
  // As complete(), for some whose records are on one server: in one message.
  struct Completion {
    GlobalPointer record;
    std::uint32_t state = 0;
    GlobalPointer block;
  };
  std::vector<Status> complete_all(ServerId server, std::span<const Completion> completions);
  Status ping(ServerId server);
  // One step at a shared object of another server: wire::SharedVerb. It may wait there, as long as it says. `body`: a
  // block of this partition, or null. The words of the reply; its bytes, if it has some, are left in `bytes`.
  Result<std::array<std::uint64_t, 3>> shared(ServerId server, const GlobalPointer& hold, wire::SharedVerb verb,
                                              const std::array<std::uint64_t, 4>& operands, const GlobalPointer& body,
                                              std::vector<std::byte>& bytes);
  Result<std::vector<std::byte>> control(ServerId server, std::span<const std::byte> body);

  // Puts blocks on a backup server that has none of them: in commits of kReplicaBatchBytes. Returns the bytes.
  Result<std::uint64_t> replicate_all(ServerId backup, std::span<const Replica> replicas);

  // Never waits: safe on a serving thread. So do the next two.
  void free_later(const GlobalPointer& remote, bool shallow);
  // As Heap::free_made(), there.
  void free_made_later(const GlobalPointer& remote);
  // The parent at `remote` with the children tied to it, except those that `successor` (null if there is
  // none) has too: Heap::free_tied, there. Never waits.
  void free_tied_later(const GlobalPointer& remote, const GlobalPointer& successor);
  // A version of another server is owned here from now on: its backup, if it has one, is told.
  void confirm_later(const GlobalPointer& value);
  // The backup of this server, if it has one, is told that replicas of that address are of no use: those with
  // a stamp below the given one, or all there are.
  void drop_replica_later(Address address);
  void drop_replica_later(Address address, std::uint64_t stamp);
  // Sends every queued free: 1 round trip a batch. True if all have been carried out, or never can be; else they are
  // sent again later, by the housekeeping thread or the next call.
  bool flush_frees();
  // Sends frees, waiting for no answer, and closes connections; every later
  // call is Code::closed. In a forked child it does
  // nothing: the connections are the parent's.
  void close() noexcept;

 private:
  class Pool;
  std::unique_ptr<Pool> pool_;
};

}  // namespace drust::server
