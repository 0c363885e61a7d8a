// Rules of the protocol that the simulation can break, one at a time, to show that it finds each.
#pragma once

#include <cstdint>

namespace drust::test {

enum class SimBug : std::uint8_t {
  none,
  early_write,         // a server puts the bytes of a region in place as they arrive
  free_by_address,     // a free ignores the colour
  completion_twice,    // a repeated completion is applied again
  submit_twice,        // a submission that may have arrived is sent again
  trailer_ignored,     // a read whose block moved on meanwhile is believed
  colour_kept,         // the end of a mutable borrow draws no colour
  pre_image_freed,     // a borrower that moved a value frees the block it was lent
  write_unheld,        // the owner writes while a task still reads
};

}  // namespace drust::test
