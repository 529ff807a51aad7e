/* SPDX-License-Identifier: Apache-2.0
 *
 * A sequence's events on their way from the engine thread to the caller's: a ring of bytes with one
 * writer and one reader. When it is full the engine leaves the sequence out of its steps until the
 * reader has caught up; nothing is ever dropped.
 */
#ifndef SHUNT_ENGINE_OUTBOX_H
#define SHUNT_ENGINE_OUTBOX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/carve.h"

struct shunt_outbox {
    unsigned char *bytes;                             /* [capacity] */
    uint32_t capacity;                                /* power of 2 */
    _Alignas(SHUNT_CACHE_LINE) _Atomic uint32_t head; /* reader's; counts bytes, wraps */
    _Alignas(SHUNT_CACHE_LINE) _Atomic uint32_t tail; /* writer's */
};

struct shunt_outbox_record {
    uint32_t type; /* enum shunt_event_type */
    int32_t token;
    uint32_t text_len;
    uint32_t reserved;
};

/* Bytes a record with so much text takes. */
static inline uint32_t shunt_outbox_bytes(size_t text_len)
{
    return (uint32_t)(sizeof(struct shunt_outbox_record) + shunt_align_up(text_len, 8));
}

/* Writer: true when `bytes` fit. */
bool shunt_outbox_has_room(const struct shunt_outbox *o, uint32_t bytes);

/* Writer: adds a record; there is room. */
void shunt_outbox_put(struct shunt_outbox *o, const struct shunt_outbox_record *record,
                      const char *text);

/* Reader: takes the oldest record; `text` has room for the longest. Return: false when there is
 * none. */
bool shunt_outbox_take(struct shunt_outbox *o, struct shunt_outbox_record *record, char *text);

/* Neither side is using it. */
void shunt_outbox_reset(struct shunt_outbox *o);

#endif
