// What outlives a block that read an array of a RwLock: the Pin of its block gets a view, which keeps the reader's slot
// in the object, and the handle, until the last view has gone and the Pin with it.
#include "bind/lock.hpp"
#include "bind/python.hpp"

namespace drust::bind {
namespace {

// All members are protected by the interpreter lock.
struct LockViewObject {
  PyObject_HEAD LockObject* lock;
  GlobalPointer value;
  PinObject* pin;  // whose view this is; it owns this
  std::uint32_t slot;
};

void dealloc(PyObject* self) {
  auto* view = reinterpret_cast<LockViewObject*>(self);
  LockObject* lock = view->lock;
  if (lock->viewed == as_object(view->pin)) lock->viewed = nullptr;
  if (is_usable(&lock->base)) {
    Runtime& runtime = *lock->base.runtime;
    std::vector<GlobalPointer> none;  // an array has no children
    sync::end_view(*runtime.heap, lock->base.object, *readable(lock), view->slot, view->value, none);
  }
  Py_DECREF(as_object(lock));
  PyObject_Free(self);
}

PyTypeObject view_type;

}  // namespace

bool may_write_block(const LockObject* lock) noexcept {
  const sync::RwLockWords* words = readable(lock);
  if (words == nullptr || !lock->is_array) return true;
  const GlobalPointer value = sync::current_value(*lock->base.runtime->partition, lock->base.object, *words);
  return as_pin(lock->pin)->pointer == value && !words->readers.is_viewed(value.address);
}

bool leave_to_views(LockObject* lock, PinObject* pin, std::uint32_t slot) {
  sync::RwLockWords* words = readable(lock);
  if (words == nullptr) {
    forget_value(lock);
    return true;
  }
  heap::Partition& partition = *lock->base.runtime->partition;
  // A block of this process's own is the views' alone; of one that is kept for others already, they are more.
  const bool has_view = pin->origin != nullptr && Py_TYPE(pin->origin) == &view_type;
  if (pin->on_release != OnRelease::nothing || has_view) {
    sync::end_read(partition, *words, slot);
    forget_value(lock);
    return true;
  }
  auto* view = PyObject_New(LockViewObject, &view_type);
  if (view == nullptr) {
    sync::end_read(partition, *words, slot);
    return false;
  }
  view->lock = reinterpret_cast<LockObject*>(Py_NewRef(as_object(lock)));
  view->value = pin->pointer;
  view->pin = pin;
  view->slot = slot;
  Py_XSETREF(pin->origin, as_object(view));
  lock->viewed = as_object(pin);
  sync::begin_view(partition, *words, slot, self_of(&lock->base), pin->pointer.address);
  forget_value(lock);
  return true;
}

bool register_lock_view(PyObject* module) {
  view_type.tp_name = "drust._core.LockView";
  view_type.tp_doc = "Views of a block of a RwLock that are left.";
  view_type.tp_basicsize = sizeof(LockViewObject);
  view_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  view_type.tp_dealloc = dealloc;
  return add_type(module, view_type, "LockView");
}

}  // namespace drust::bind
