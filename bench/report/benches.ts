/** Which benches leave artifacts, and what their reports are called. */

/** In the order in which they are shown. */
export const BENCHES = {
  tables: 'The paper’s tables',
  peers: 'The engine beside llama.cpp',
  engine: 'The bare engine',
  handoff: 'The KV cache between two processes',
  load: 'Load: both modes and the rates they sustain',
  interference: 'Interference: running streams while long prompts arrive',
  breakdown: 'Where the time of a request goes',
  retrieval: 'Retrieval',
  index: 'Indexing',
  typing: 'An editing session',
  plan: 'Planner',
  recall: 'Retrievers compared',
  drills: 'Drills: what happens when things break',
  soak: 'Soak: does anything grow?',
} as const;
export type BenchName = keyof typeof BENCHES;
