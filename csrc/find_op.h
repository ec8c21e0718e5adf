// Finds an op by its name, for C++ that calls it through the dispatcher. Keep it: finding takes longer than a call.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace fastdhm {

template <class Op>
c10::TypedOperatorHandle<Op> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Op>();
}

}  // namespace fastdhm
