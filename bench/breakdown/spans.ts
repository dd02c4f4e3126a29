/** Divides the time of a request into the stages of its way through the system. */

interface StageSpan {
  readonly stage: string;
  /** Explains the stage to the reader of the table. */
  readonly meaning: string;
  /** Start in ms since the client sent the request. */
  readonly startMs: number;
  readonly durationMs: number;
}

export interface BrokenDown {
  readonly spans: readonly StageSpan[];
  readonly ttftMs: number;
  readonly totalMs: number;
  /** Duration of a prompt of as many tokens on the bare engine; undefined without a bare engine. */
  readonly bareMs: number | undefined;
  /** TTFT minus that duration. */
  readonly overheadMs: number | undefined;
  /** Time until all KV had arrived, from the end of the last prompt chunk. */
  readonly exposedMs: number;
  readonly timeline: Readonly<Record<string, number>>;
}

/**
 * Divides a request into spans that follow one another without a gap, from sending to the last token. Workers report
 * durations and not times: the RPC span is the time from dispatch to first token minus the time spent in the worker.
 * @param timeline ms since the gateway received the request, by event, and durations in ms by stage (`…_ms`).
 * @param bareMs duration of the prompt on the bare engine.
 */
export function breakDown(
  timeline: Readonly<Record<string, number>>,
  ttft: number,
  total: number,
  bareMs?: number,
): BrokenDown {
  const at = (event: string) => timeline[event] ?? 0;
  const stage = (name: string) => timeline[`${name}_ms`] ?? 0;
  const first = at('first_token');
  const joined = Math.max(timeline['joined'] ?? first, first);
  const inWorker = stage('prefill_queue') + stage('prefill');
  const exposed = stage('handoff_exposed');
  const decoding = total - ttft - (joined - first);
  // The stage counts all tokens; the first one lies before the TTFT, and its share is negligible.
  const detokenize = Math.max(0, Math.min(stage('detokenize'), decoding));
  const durations: readonly [string, string, number][] = [
    ['network', 'client ⇄ gateway: the time that the client waits beyond what the gateway counts', ttft - first],
    ['admit', 'the request is validated and gets a place', at('admitted')],
    ['retrieve', 'the chunks are retrieved', at('retrieved') - at('admitted')],
    ['tokenize', 'the prompt is built', at('tokenized') - at('retrieved')],
    ['dispatch', 'the workers are chosen', at('dispatched') - at('tokenized')],
    ['queue', 'waiting in the prefill worker', stage('prefill_queue')],
    ['prefill', 'the prefill worker computes the prompt', stage('prefill')],
    ['rpc', 'gateway ⇄ prefill worker', first - at('dispatched') - inWorker],
    ['handoff', 'KV that arrives after the last prompt chunk', Math.min(exposed, joined - first)],
    ['decode queue', 'waiting for a slot and for the batch', Math.max(0, joined - first - exposed)],
    ['detokenize', 'tokens become text', detokenize],
    ['steps', 'decoding and sending', decoding - detokenize],
  ];
  let startMs = 0;
  const spans = durations.map(([name, meaning, durationMs]) => {
    const span = { stage: name, meaning, startMs, durationMs };
    startMs += durationMs;
    return span;
  });
  const overheadMs = bareMs === undefined ? undefined : ttft - bareMs;
  return { spans, ttftMs: ttft, totalMs: total, bareMs, overheadMs, exposedMs: exposed, timeline };
}
