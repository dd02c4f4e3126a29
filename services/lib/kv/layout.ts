/**
 * The shape of a KV cache and how it is cut for the wire. K and V of a layer are each `[slot, kv_head, position,
 * head_dim]`. A *row* is one (layer, K or V, head): row = (layer * 2 + (0 for K, 1 for V)) * kv_heads + head. Within a
 * slot a row is `[capacity, head_dim]` and contiguous, so any positions [start, end) of it can be copied at once.
 */

/**
 * The type of the values of a KV cache: what the engine computes in, float16 as its bits; or int8, each
 * value a multiple of the scale that its channel has in the bundle (engine-kv.ts).
 */
export type KvType = 'float32' | 'float16' | 'int8-channel';

export interface KvLayout {
  readonly layers: number;
  readonly kvHeads: number;
  /** Elements of one head's key or value at one position. */
  readonly headDim: number;
  /** The type of the values; float32 if not given. */
  readonly type?: KvType;
}

/** Rows [rowStart, rowEnd) of positions [start, end). */
export interface KvRange {
  readonly start: number;
  readonly end: number;
  readonly rowStart: number;
  readonly rowEnd: number;
}

/** 1 MiB: the message size at which grpc-js streams fastest (0.55 GB/s at 64 KiB, 1.67 at 1 MiB, 1.07 at 4 MiB). */
export const FRAME_BYTES = 1 << 20;

export const rowCount = (layout: KvLayout) => layout.layers * 2 * layout.kvHeads;

const ELEMENT_BYTES = { float32: 4, float16: 2, 'int8-channel': 1 } as const;
export const elementBytes = ({ type = 'float32' }: KvLayout) => ELEMENT_BYTES[type];

/** Bytes of all rows at one position, in the pool. */
export const positionBytes = (layout: KvLayout) => rowCount(layout) * layout.headDim * elementBytes(layout);

/**
 * Cuts positions [start, end) of all rows into ranges of at most `frameBytes` (but at least one row of one position)
 * each. Positions ascend, and within the same positions rows ascend, without gap or overlap.
 */
export function planFrames(layout: KvLayout, start: number, end: number, frameBytes = FRAME_BYTES): KvRange[] {
  const rows = rowCount(layout);
  const cell = layout.headDim * 4;
  const span = Math.max(1, Math.min(end - start, Math.floor(frameBytes / cell)));
  const ranges: KvRange[] = [];
  for (let from = start; from < end; from += span) {
    const to = Math.min(end, from + span);
    const rowsPerFrame = Math.max(1, Math.floor(frameBytes / (cell * (to - from))));
    for (let row = 0; row < rows; row += rowsPerFrame) {
      ranges.push({ start: from, end: to, rowStart: row, rowEnd: Math.min(rows, row + rowsPerFrame) });
    }
  }
  return ranges;
}

/** The part of a layout that two workers must share to exchange KV, for error messages. */
export const describeLayout = (layout: KvLayout) =>
  `${layout.layers} layers x ${layout.kvHeads} kv heads x ${layout.headDim}`;
