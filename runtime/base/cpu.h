/* SPDX-License-Identifier: Apache-2.0
 *
 * What the machine gives this process: instruction sets, processors, memory.
 */
#ifndef SHUNT_BASE_CPU_H
#define SHUNT_BASE_CPU_H

#include <stdint.h>

enum {
    SHUNT_CPU_AVX2 = 1u << 0, /* AVX2, FMA and F16C, and the kernel saves their registers */
};

uint32_t shunt_cpu_features(void);

/* Processors this process may run on, at least 1. */
uint32_t shunt_cpu_count(void);

/* Memory a process could take now without swapping: the machine's, or its control group's if that
 * is less. */
uint64_t shunt_memory_available(void);

/* Resident memory of this process now, huge pages included. */
uint64_t shunt_memory_resident(void);

/* Bytes that this process and all others of its user together may lock; UINT64_MAX: any. */
uint64_t shunt_memory_lockable(void);

#endif
