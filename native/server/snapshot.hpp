// A block header to be sent: what describes the bytes, without the words that others change while it travels.
#pragma once

#include "heap/block.hpp"

namespace drust::server {

inline void take_snapshot(const heap::BlockHeader& live, heap::BlockHeader& sent) noexcept {
  sent.extent_bytes = live.extent_bytes;
  sent.codec = live.codec;
  sent.child_count = live.child_count;
  sent.buffer_count = live.buffer_count;
  sent.meta_bytes = live.meta_bytes;
  sent.value_bytes = live.value_bytes;
}

}  // namespace drust::server
