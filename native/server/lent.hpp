// What a lender finds out by himself about a lend whose outcome nobody can tell him: the server of the task is lost,
// or had no room for the report, or his own had none for the completion. And what a reaper finds out for a task whose
// worker died: whether a task below it, of which the dead one may not have heard, has written in place.
//
// A block that was written in place has another colour than was lent, or, when its writer died over it, a flag that
// says so (heap::kWriting). So has one below it, which the parent's table still names by the old one. The tree is walked, tables only: 1 message a block on another server, no value travels.
// What is found is entered in the tables that lie here, so that whoever clears the poison finds what there is and
// frees it one day. Only where it is certain that the block is the one that was lent, and not another that has got
// its address since: the header of a block that was written in place names the colour before, once.
//
// Rejected: asking whoever ran the tasks below (they may be dead, or on the lost server); a table of what was written
// in place for lenders that are lost (it would grow with every lend, for a loss in a thousand).
#pragma once

#include "heap/heap.hpp"
#include "server/peers.hpp"

namespace drust::server {

struct Lent {
  GlobalPointer now;        // the block under the colour it has; null if it cannot be asked
  bool is_written = false;  // it, or anything below it
};

// By its lender, when nothing that has it on loan runs any more. `gone`: a server that is lost, whose blocks are not
// looked at.
Lent look_at_lent(heap::Heap& heap, Peers& peers, const GlobalPointer& lent, ServerId gone);

}  // namespace drust::server
