/** What became of proposed tokens, by where they came from, as the decode workers of a system count it. */
import { text } from 'node:stream/consumers';
import { DRAFT_SOURCES, type DraftSource } from '../../services/decode/speculation/draft-index.ts';
import { sendRequest } from '../../services/http-call.ts';
import type { RunningSystem } from '../../services/supervisor.ts';

export interface SourceCounts {
  readonly source: DraftSource;
  readonly runs: number;
  readonly proposed: number;
  readonly accepted: number;
}

/** What the decode workers of a system have counted since their start: every source, in one order. */
export async function countsOf(
  { processes }: Pick<RunningSystem, 'processes'>,
  timeoutMs: number,
): Promise<SourceCounts[]> {
  const decoders = processes.filter(({ name }) => /^(decode|colocated)/.test(name));
  const signal = AbortSignal.timeout(timeoutMs);
  const pages = await Promise.all(
    decoders.map(async ({ metricsAddress }) =>
      text(await sendRequest({ method: 'GET', url: `http://${metricsAddress}/metrics`, headers: {}, signal })),
    ),
  );
  const sum = (metric: string, source: string) =>
    pages
      .flatMap((page) => [...page.matchAll(new RegExp(`^${metric}\\{[^}]*source="${source}"[^}]*\\} (\\S+)`, 'gm'))])
      .reduce((total, [, value]) => total + Number(value), 0);
  return DRAFT_SOURCES.map((source) => ({
    source,
    runs: sum('vllm:spec_decode_num_drafts_total', source),
    proposed: sum('vllm:spec_decode_num_draft_tokens_total', source),
    accepted: sum('vllm:spec_decode_num_accepted_tokens_total', source),
  }));
}

/** What was counted between two moments; sources without a run are left out. */
export const countedBetween = (before: readonly SourceCounts[], after: readonly SourceCounts[]): SourceCounts[] =>
  after
    .map(({ source, ...counts }, at) => ({
      source,
      runs: counts.runs - before[at]!.runs,
      proposed: counts.proposed - before[at]!.proposed,
      accepted: counts.accepted - before[at]!.accepted,
    }))
    .filter(({ runs }) => runs > 0);
