// How a completion, or the report of a loss, reaches the record that waits for it, and what becomes of its block.
//
// A completion's child table has three kinds of pointers: boxes of the result, which the block owns; lends that
// the task left where they were (kShared); and the new versions of lends that moved (kMutable). A new version is
// nobody's while it travels: the joiner takes it, or, where nobody joins any more, it goes without the children
// that it shares with its pre-image. Used by workers, by serving threads and by the reaper, so that it is one rule.
#pragma once

#include <span>
#include <vector>

#include "heap/heap.hpp"
#include "server/peers.hpp"
#include "tasks/queue.hpp"

namespace drust::server {

// The task has returned: its completion, and the versions that `worker` made in this partition, are not its own any
// more. The entry of the task answers for them until they are delivered.
void release_versions(heap::Heap& heap, const GlobalPointer& completion, heap::ProcessId worker) noexcept;

// A copy that has come over the wire, to a record of this partition. Blocks on other servers that go with an
// unwanted one are appended: whole trees to `remote`, borrowers' versions to `made`.
// Says what it met.
tasks::Delivery deliver_here(heap::Heap& heap, const GlobalPointer& record, tasks::RecordState state,
                  const GlobalPointer& completion, std::vector<GlobalPointer>& remote,
                  std::vector<GlobalPointer>& made) noexcept;

// The new versions in a completion that its joiner, who is dead or gives up, had not taken: they go.
void free_untaken(heap::Heap& heap, const GlobalPointer& completion, std::vector<GlobalPointer>& remote,
                  std::vector<GlobalPointer>& made) noexcept;

// Nobody will join: a completion that has come goes with its record, one that comes later with who brings it. True
// if it is still to come.
bool drop_joiner(heap::Heap& heap, const GlobalPointer& record, std::vector<GlobalPointer>& remote,
                 std::vector<GlobalPointer>& made);

// To a record wherever it is: 0 messages here, else 1 round trip. The block is not the caller's any more, also
// when its receiver is known to be lost. timed_out: the receiver does not answer, but nobody has said that it has
// ended: nothing was freed, and the caller tries again, for what has moved into the completion may be all there is
// of a value.
// A receiver without room for the block is told the outcome without it: 1 more round trip, and the block goes with
// all it brings, as the joiner keeps what he had lent. `is_forbidden`: the task did what cannot be rolled back.
Status deliver(heap::Heap& heap, Peers& peers, const GlobalPointer& record, tasks::RecordState state,
               const GlobalPointer& completion, bool is_forbidden);

// As deliver(), of tasks that have returned, to records on one other server: 1 round trip for all of them.
struct Homecoming {
  GlobalPointer record;
  GlobalPointer completion;
  bool is_forbidden = false;
};
std::vector<Status> deliver_all(heap::Heap& heap, Peers& peers, ServerId server, std::span<const Homecoming> all);

}  // namespace drust::server
