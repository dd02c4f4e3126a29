/** What a worker does before it serves. */
import { NO_SOFT_TOKENS } from '../lib/request/sequence.ts';
import type { PromptEngine } from './worker.ts';

/** Long enough that a run's fixed cost does not show, short enough that a large model is up soon. */
const TOKENS = 256;

/**
 * Runs the engine twice: first for a few tokens, which reads all weights from disk, then for what says how fast it is.
 * Without that, admission would know no bound before the first prompt is computed, and a burst would all be let in.
 */
export async function measureRate(engine: PromptEngine): Promise<{ tokens: number; seconds: number }> {
  const tokens = Math.min(TOKENS, engine.pool.capacity - 1);
  const slot = engine.pool.reserve(tokens);
  if (slot === undefined) throw new Error('warming up an engine that is in use');
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
