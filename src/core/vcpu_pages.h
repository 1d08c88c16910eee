/* The layout of a vCPU descriptor's mapping. */
#ifndef CORE_VCPU_PAGES_H
#define CORE_VCPU_PAGES_H

#include <linux/kvm.h>
#include "base/types.h"

#ifndef KVM_PIO_PAGE_OFFSET
#define KVM_PIO_PAGE_OFFSET 1
#endif
#ifndef KVM_COALESCED_MMIO_PAGE_OFFSET
#define KVM_COALESCED_MMIO_PAGE_OFFSET 2
#endif
#define VCPU_MMAP_SIZE (3 * PAGE_SIZE)

#endif
