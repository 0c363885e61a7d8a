#include "bind/anchor.hpp"

#include "bind/python.hpp"

namespace drust::bind {

Result<GlobalPointer> make_holder(heap::Heap& heap, const GlobalPointer& owned, std::uint32_t codec,
                                  std::uint64_t flags) noexcept {
  const Result<Address> around = heap.allocate({.codec = codec, .child_count = 1, .buffer_bytes = {}});
  if (!around.ok()) return around.status();
  const heap::Block block(heap.partition().writable(around.value().offset_bytes()));
  block.children()[0] = {owned.address.raw(), owned.colour, owned.extent_bytes, flags};
  if ((flags & heap::ChildPointer::kMade) != 0) heap.adopt_children(around.value());
  return heap.publish(around.value());
}

PyObject* make_held(const GlobalPointer& owned, const GlobalPointer& holder) {
  PyObject* around = make_pin(holder, holder, true, OnRelease::free_shallow, 0);
  PyObject* pin = around == nullptr ? nullptr : make_hold(owned, OnRelease::free_tree);
  if (pin != nullptr) {
    as_pin(pin)->holder = around;
    as_pin(pin)->holder_index = 0;
    return pin;
  }
  release_block(owned, OnRelease::free_tree, 0);
  if (around == nullptr) release_block(holder, OnRelease::free_shallow, 0);
  Py_XDECREF(around);
  return nullptr;
}

Status anchor(PinObject* pin) noexcept {
  Runtime* runtime = current_runtime();
  const bool is_owned = pin->on_release == own_release(pin) && pin->runtime == runtime && pin->holder == nullptr;
  if (runtime == nullptr || !is_owned || runtime->partition->is_local(pin->pointer.address)) return {};
  const Result<GlobalPointer> made =
      make_holder(*runtime->heap, pin->pointer, kHolderCodec, pin->is_made ? heap::ChildPointer::kMade : 0);
  if (!made.ok()) return made.status();
  pin->holder = make_pin(made.value(), made.value(), true, OnRelease::free_shallow, 0);
  pin->holder_index = 0;
  if (pin->holder != nullptr) return {};
  PyErr_Clear();
  release_block(made.value(), OnRelease::free_shallow, 0);
  return Status(Code::out_of_memory, "no memory for a handle");
}

void anchor_former_child(PinObject* pin) noexcept {
  Runtime* runtime = current_runtime();
  if (runtime == nullptr || pin->on_release != own_release(pin) || pin->runtime != runtime) return;
  if (!runtime->partition->is_local(pin->pointer.address)) {
    if (!anchor(pin).ok()) runtime->partition->watch().blind();
    return;
  }
  const Result<heap::Block> block = runtime->partition->find(pin->pointer.address, pin->pointer.colour);
  if (!block.ok()) return;
  const std::uint64_t owner = block.value().header().owner.load();
  if (heap::owner_kind(owner) != heap::OwnerKind::parent) return;
  const auto kind = runtime->heap->is_of_version(owner) ? heap::OwnerKind::borrower : heap::OwnerKind::process;
  runtime->heap->change_owner(pin->pointer, owner, heap::owner_word(kind, runtime->process));
}

}  // namespace drust::bind
