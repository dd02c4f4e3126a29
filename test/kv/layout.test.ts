/** Cutting a KV cache into frames. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { FRAME_BYTES, planFrames, positionBytes, rowCount } from '../../services/lib/kv/layout.ts';

const layouts = fc.record({
  layers: fc.integer({ min: 1, max: 4 }),
  kvHeads: fc.integer({ min: 1, max: 4 }),
  headDim: fc.integer({ min: 1, max: 16 }),
});
const ranges = fc.tuple(fc.nat(40), fc.nat(40)).map(([start, length]) => ({ start, end: start + length }));

describe('planFrames', () => {
  test('frames cover every row at every position once, positions and rows ascending', () => {
    fc.assert(
      fc.property(layouts, ranges, fc.integer({ min: 1, max: 4096 }), (layout, { start, end }, frameBytes) => {
        const cells: [number, number][] = [];
        const frames = planFrames(layout, start, end, frameBytes);
        for (const frame of frames) {
          for (let row = frame.rowStart; row < frame.rowEnd; row++) {
            for (let position = frame.start; position < frame.end; position++) cells.push([row, position]);
          }
        }
        const expected = new Set<string>();
        for (let row = 0; row < rowCount(layout); row++) {
          for (let position = start; position < end; position++) expected.add(`${row}:${position}`);
        }
        expect(cells).toHaveLength(expected.size);
        expect(new Set(cells.map(([row, position]) => `${row}:${position}`))).toEqual(expected);
        for (const [i, frame] of frames.entries()) {
          const before = frames[i - 1];
          const follows =
            before === undefined || before.rowEnd === rowCount(layout)
              ? frame.rowStart === 0 && frame.start === (before?.end ?? start)
              : frame.rowStart === before.rowEnd && frame.start === before.start && frame.end === before.end;
          expect(follows).toBe(true);
        }
      }),
    );
  });

  test('no frame exceeds the frame size, unless one row of one position does', () => {
    fc.assert(
      fc.property(layouts, ranges, fc.integer({ min: 1, max: 4096 }), (layout, { start, end }, frameBytes) => {
        const cell = layout.headDim * 4;
        for (const frame of planFrames(layout, start, end, frameBytes)) {
          const bytes = (frame.rowEnd - frame.rowStart) * (frame.end - frame.start) * cell;
          expect(bytes).toBeLessThanOrEqual(Math.max(frameBytes, cell));
        }
      }),
    );
  });

  test('a prompt chunk of a real model is cut into frames of about the frame size', () => {
    const layout = { layers: 24, kvHeads: 2, headDim: 64 };
    const frames = planFrames(layout, 0, 512);
    const total = positionBytes(layout) * 512;
    expect(frames).toHaveLength(Math.ceil(total / FRAME_BYTES));
  });
});
