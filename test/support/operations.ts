/** The tables of deploy/OPERATIONS.md that come from code: rendered from it, and read back from the file. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { envName, flagName } from '../../services/lib/process/config.ts';
import { ERRORS } from '../../services/lib/process/errors.ts';
import { measuredBy, metrics } from '../../services/lib/process/metrics.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import {
  EVENTS,
  type RequestEvent,
  SPANS,
  STAGES,
  type TimelineSpan,
  type TimelineStage,
} from '../../services/lib/request/timeline.ts';
import { SETTINGS } from '../../services/settings.ts';

export const OPERATIONS = join(PACKAGE_ROOT, 'deploy/OPERATIONS.md');

/** prom-client keeps these on its objects without declaring them. */
export interface MetricFacts {
  readonly name: string;
  readonly help: string;
  readonly labelNames: readonly string[];
}
export const metricFacts = (metric: object) => metric as MetricFacts;

const EVENT_MEANING: Record<RequestEvent, string> = {
  received: 'the last byte of the request body was read',
  admitted: 'the request is valid and has a place among the running ones',
  retrieved: 'chunks were found, or given up on',
  tokenized: 'the prompt is built',
  dispatched: 'the prompt was sent to a prefill worker',
  first_token: "prefill's token reached the gateway",
  replayed: 'a worker was lost, and its part of the request was given to others',
  joined: 'the KV cache was handed over and the sequence joined the decode batch',
  last_token: 'the last token reached the gateway',
  finished: 'the last byte of the answer was handed to the socket',
};

const STAGE_MEANING: Record<TimelineSpan | TimelineStage, string> = {
  admit: 'checking the request and giving it a place',
  retrieve: 'searching for chunks, or giving up on them',
  tokenize: 'building the prompt',
  dispatch: 'waiting in the gateway until workers have room',
  first_token: "from then to prefill's token: the prefill worker's queue and work, and the way there and back",
  decode: 'from the first token to the last: hand-over, decode steps, and waiting for a client that reads slowly',
  prefill_queue: 'waiting in the prefill worker',
  prefill: 'computing the prompt, first chunk to first token',
  decode_queue: 'waiting for a slot of the decode worker',
  handoff: 'pulling the KV cache, first pull to last verified frame',
  handoff_exposed: 'the part of it after prefill had finished: what the user waits for',
  detokenize: 'turning tokens into text in the gateway, all steps together',
};

const STAGE_SOURCE: Record<TimelineStage, string> = {
  prefill_queue: 'by the prefill worker',
  prefill: 'by the prefill worker',
  decode_queue: 'by the decode worker',
  handoff: 'by the decode worker',
  handoff_exposed: 'by the decode worker',
  detokenize: 'by the gateway',
};

const code = (text: string) => `\`${text}\``;

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(head), `|${head.map(() => '---|').join('')}`, ...rows.map(line)].join('\n');
}

function defaultOf(setting: keyof typeof SETTINGS): string {
  if (setting === 'threads') return 'number of cores';
  if (setting === 'capacity') return 'from the model';
  if (setting === 'deviceMemory') return 'not checked';
  const parsed = SETTINGS[setting].safeParse(undefined);
  if (!parsed.success) return 'required';
  const text = String(parsed.data);
  return text === '' ? 'empty' : code(text);
}

const SECTIONS: Record<string, () => string> = {
  settings: () =>
    table(
      ['Flag', 'Variable', 'Default', 'Meaning'],
      (Object.keys(SETTINGS) as (keyof typeof SETTINGS)[]).map((setting) => [
        code(flagName(setting)),
        code(envName(setting)),
        defaultOf(setting),
        SETTINGS[setting].description ?? '',
      ]),
    ),
  timeline: () =>
    [
      table(
        ['Event', 'Meaning'],
        EVENTS.map((event) => [code(event), EVENT_MEANING[event]]),
      ),
      table(
        ['Stage', 'Measured', 'Meaning'],
        [
          ...Object.entries(SPANS).map(([stage, [from, to]]) => [
            code(stage),
            `by the gateway, ${code(from)} to ${code(to)}`,
            STAGE_MEANING[stage as TimelineSpan],
          ]),
          ...STAGES.map((stage) => [code(stage), STAGE_SOURCE[stage], STAGE_MEANING[stage]]),
        ],
      ),
    ].join('\n\n'),
  metrics: () =>
    table(
      ['Name', 'Measured by', 'Type', 'Labels', 'Meaning'],
      Object.values(metrics).map((metric) => {
        const { name, help, labelNames } = metricFacts(metric);
        const roles = measuredBy(metric).join(', ');
        return [code(name), roles, metric.constructor.name.toLowerCase(), labelNames.map(code).join(', '), help];
      }),
    ),
  errors: () =>
    table(
      ['Code', 'HTTP', 'gRPC', 'Retryable', 'Remedy'],
      Object.entries(ERRORS).map(([name, { http, grpc, retryable, remedy }]) => [
        code(name),
        String(http),
        grpc,
        retryable ? 'yes' : 'no',
        remedy,
      ]),
    ),
};

/** The file with every table rendered anew. */
export function rendered(): string {
  return Object.entries(SECTIONS).reduce(
    (text, [section, render]) => {
      const block = new RegExp(`(<!-- ${section}: [^>]* -->\n)[^]*?(<!-- end -->)`);
      if (!block.test(text)) throw new Error(`${OPERATIONS} has no section for ${section}`);
      return text.replace(block, (_, start: string, end: string) => `${start}${render()}\n${end}`);
    },
    readFileSync(OPERATIONS, 'utf8'),
  );
}

/** First cells of the tables in one section of the file as it lies there, without backquotes. */
export function documented(section: keyof typeof SECTIONS): string[] {
  const text = readFileSync(OPERATIONS, 'utf8');
  const block = text.split(`<!-- ${section}: `)[1]?.split('<!-- end -->')[0] ?? '';
  return [...block.matchAll(/^\| `([^`]+)` \|/gm)].map((match) => match[1]!);
}
