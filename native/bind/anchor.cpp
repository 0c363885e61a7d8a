#include "bind/anchor.hpp"

#include "bind/python.hpp"

namespace drust::bind {

Status anchor(PinObject* pin) noexcept {
  Runtime* runtime = current_runtime();
  const bool is_owned = pin->on_release == OnRelease::free_tree && pin->runtime == runtime && pin->holder == nullptr;
  if (runtime == nullptr || !is_owned || runtime->partition->is_local(pin->pointer.address)) return {};
  const Result<Address> around = runtime->heap->allocate({.codec = kHolderCodec, .child_count = 1, .buffer_bytes = {}});
  if (!around.ok()) return around.status();
  const heap::Block block(runtime->partition->writable(around.value().offset_bytes()));
  block.children()[0] = {pin->pointer.address.raw(), pin->pointer.colour, pin->pointer.extent_bytes, 0};
  const GlobalPointer published = runtime->heap->publish(around.value());
  pin->holder = make_pin(published, published, true, OnRelease::free_shallow, 0);
  if (pin->holder != nullptr) return {};
  PyErr_Clear();
  release_block(published, OnRelease::free_shallow, 0);
  return Status(Code::out_of_memory, "no memory for a handle");
}

void anchor_former_child(PinObject* pin) noexcept {
  Runtime* runtime = current_runtime();
  if (runtime == nullptr || pin->on_release != OnRelease::free_tree || pin->runtime != runtime) return;
  if (!runtime->partition->is_local(pin->pointer.address)) {
    static_cast<void>(anchor(pin));
    return;
  }
  const Result<heap::Block> block = runtime->partition->find(pin->pointer.address, pin->pointer.colour);
  if (!block.ok()) return;
  const std::uint64_t owner = block.value().header().owner.load();
  if (heap::owner_kind(owner) != heap::OwnerKind::parent) return;
  runtime->heap->change_owner(pin->pointer, owner, heap::owner_word(heap::OwnerKind::process, runtime->process));
}

}  // namespace drust::bind
