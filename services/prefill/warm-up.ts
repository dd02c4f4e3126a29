/** The first runs of a worker's engine, before it serves. */
import { NO_SOFT_TOKENS } from '../lib/request/token-prompt.ts';
import type { PromptEngine } from './prompt-computation.ts';

/** Long enough that a run's fixed cost does not show, short enough that a large model is ready soon. */
const TOKENS = 256;

/**
 * Runs the engine twice: first for a few tokens, which reads all weights from disk, then for a measurement. Without a
 * rate the gateway's admission would have no bound before the first prompt is computed and would let a whole burst in.
 */
export async function measureRate(engine: PromptEngine): Promise<{ tokens: number; seconds: number }> {
  const tokens = Math.min(TOKENS, engine.pool.capacity - 1);
  const slot = engine.pool.reserve(tokens);
  if (slot === undefined) throw new Error('the engine can be warmed up only before it serves: all slots are held');
  const compute = (count: number) =>
    engine.chunk({ slot: slot.index, past: 0, ids: new Int32Array(count), soft: NO_SOFT_TOKENS, logitRows: [] });
  try {
    await compute(Math.min(16, tokens));
    const startedMs = performance.now();
    await compute(tokens);
    return { tokens, seconds: (performance.now() - startedMs) / 1000 };
  } finally {
    slot.release();
  }
}
