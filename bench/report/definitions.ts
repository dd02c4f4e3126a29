/** How the figures of each bench are defined: an artifact carries those that its report shows. */
import { DEFINITIONS } from '../measure/latency.ts';
import type { BenchName } from './benches.ts';

export type Definitions = Readonly<Record<string, string>>;

const { ttft, tpot } = DEFINITIONS;
const MEMORY = {
  resident: 'MiB in memory, shared pages in full',
  anonymous: 'MiB in memory that no file backs: what a second process of the same model needs again',
};
const TOKENS_PER_SECOND = '1000 × tokens of the cell (prompt tokens, or sequences of the step) / median ms';

const OF_BENCH: Readonly<Record<BenchName, Definitions>> = {
  tables: {
    ttft,
    tpot,
    reduction: '1 - TTFT with soft tokens / TTFT with their text, of pairs measured one after the other; median',
    interval: `of the median reduction, ${DEFINITIONS.interval}`,
    'tokens cut': '1 - tokens of the prompt with soft tokens / tokens with text',
    verdict:
      'yes: the median reduction is at least the tokens cut; uncertain: its interval holds them, or covers less than 90 %',
  },
  peers: {
    speed: "the peer's ms / the engine's ms, of one round each; median and quartiles over the rounds",
    'tokens/s': TOKENS_PER_SECOND,
    load: 'ms until the model is ready',
    ...MEMORY,
  },
  engine: {
    'ms, median': 'of one prompt, or of one decode step, in a process of its own without a server',
    interval: DEFINITIONS.interval,
    'tokens/s': TOKENS_PER_SECOND,
    load: 'ms until the model is loaded and has run once',
    ...MEMORY,
    proportional: 'MiB in memory, each shared page divided by the processes that share it',
  },
  handoff: {
    ms: 'from the request for the KV to its last checked byte',
    'GB/s of values': 'bytes of the float32 values / that time, whatever they travel as',
    packing: "ms of the sender: values made the wire's type, with CRC",
    taking: 'ms of the receiver: CRC, and values put in their places',
    CPU: 'ms of all threads of the process',
  },
  load: DEFINITIONS,
  interference: {
    'TTFT of the prompts': ttft,
    TPOT: 'ms: (last - first token) / (tokens - 1), of what a stream put out in a window; p50 over the streams',
    ITL: 'ms between two tokens of a stream, pooled over the streams',
    quiet: 'the window before the prompts arrive; busy: as long a one in which they do',
    slowdown: 'p99 of the ITL, busy / quiet',
  },
  breakdown: {
    TTFT: 'ms from sending to the first token, as the client sees it; one request at a time',
    'bare engine prefill': 'ms of a prompt of as many tokens on the engine alone, right after the request',
    overhead: 'TTFT - bare engine prefill, in pairs; median',
    'handoff exposed': 'ms until the KV had come, from the end of the last prompt chunk',
  },
  retrieval: {
    first: 'ms of the first query, which loads the index',
    'p50, p90, p99': "of the later queries, ms each, in the gateway's process",
  },
  index: {
    encoded: 'chunks that went through encoder and projector; the others were there already',
    'chunks/s': 'chunks encoded / s of the run, without loading the encoder',
  },
  typing: {
    TTFT: 'ms from the end of the pause (or the keystroke) that a request follows to its first token, where there was one',
    'end to end': 'ms from there to the last token, of requests answered in full',
    'in time': 'before the next keystroke hung up',
    'of prompts reused': 'share of the prompt tokens of answered requests whose KV was there already',
  },
  plan: {
    attainment: 'share of simulated requests that meet every objective, the ramp left out',
    error: 'simulated / measured - 1, with the arrivals of the measured run',
    'decode step': 'ms between two tokens while so many sequences generate; mean from the last start to the first end',
  },
  recall: {
    'recall@10': 'share of questions whose defining chunk is among the first ten found',
    'p50, p99': 'ms of one search for ten chunks on one core',
    'bytes per chunk': "of the index in memory / chunks; identifiers' names apart",
    build: 's to make the index',
  },
  drills: {
    left: 'clients that hung up',
    lost: 'tokens of the greedy answer of an undisturbed run that did not come',
    doubled: 'tokens that came and are not those of that answer at their place',
    recovery: 'ms from a disturbance to the first token of a request sent after it; the longest',
    'worst TTFT, longest gap': 'ms, of streams that ended well',
  },
  soak: {
    'MiB/h, files/h':
      'slope of the floor (the lowest value of each sixth of the time) by least squares, ± two standard errors',
    'live heap': 'what lives in V8’s heap: its slope is that of what is left after collections',
    staged: 'KV of a prefill worker that nobody has taken yet: MiB at its peak, bytes left at the end',
  },
};

export const definitionsOf = (bench: string): Definitions => (OF_BENCH as Record<string, Definitions>)[bench] ?? {};

interface Defined {
  readonly bench: string;
  readonly definitions: Definitions;
}

/** Artifacts of before carry those of the load whatever they are of. */
function ownOf({ bench, definitions }: Defined): Definitions {
  const load = Object.keys(DEFINITIONS);
  const keys = Object.keys(definitions);
  const ofLoad = keys.length === load.length && load.every((key) => key in definitions);
  return ofLoad && bench !== 'load' ? definitionsOf(bench) : definitions;
}

/** [figure, benches, definition]: what is defined alike stands once. */
export function mergeDefinitions(artifacts: readonly Defined[]): string[][] {
  const rows = new Map<string, { figure: string; definition: string; benches: Set<string> }>();
  for (const artifact of artifacts) {
    for (const [figure, definition] of Object.entries(ownOf(artifact))) {
      const key = `${figure}\n${definition}`;
      const row = rows.get(key) ?? { figure, definition, benches: new Set() };
      rows.set(key, row);
      row.benches.add(artifact.bench);
    }
  }
  return [...rows.values()].map(({ figure, definition, benches }) => [figure, [...benches].join(', '), definition]);
}
