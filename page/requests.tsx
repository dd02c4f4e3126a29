/** The requests that have ended, and where the time of each went: the waterfall of its timeline. */
import { useState } from 'preact/hooks';
import type { RequestBody } from '../services/gateway/http/admin-answers.ts';
import { SPANS, STAGES, type TimelineSpan } from '../services/lib/request/timeline.ts';
import { count, ms } from './format.ts';
import { Head } from './head.tsx';

export function Requests({ requests }: { readonly requests: readonly RequestBody[] }) {
  const [wanted, setWanted] = useState('');
  const [failedOnly, setFailedOnly] = useState(false);
  const [open, setOpen] = useState<string>();
  const shown = requests.filter(
    (request) => (!failedOnly || request.code !== undefined) && (wanted === '' || wordsOf(request).includes(wanted)),
  );
  return (
    <>
      <form class="filter" onSubmit={(event) => event.preventDefault()}>
        <label>
          Filter
          <input
            type="search"
            value={wanted}
            placeholder="id, tenant, repository, code"
            onInput={({ currentTarget }) => setWanted(currentTarget.value.trim())}
          />
        </label>
        <label class="check">
          <input type="checkbox" checked={failedOnly} onChange={() => setFailedOnly(!failedOnly)} /> failed only
        </label>
      </form>
      <div class="wide">
        <table>
          <caption>
            The newest {requests.length} requests of this gateway. Prompts and completions are not recorded.
          </caption>
          <Head columns={COLUMNS} />
          <tbody>
            {shown.map((request) => (
              <Row
                key={request.number}
                request={request}
                isOpen={open === request.request_id}
                onToggle={() => setOpen(open === request.request_id ? undefined : request.request_id)}
              />
            ))}
          </tbody>
        </table>
      </div>
      {shown.length === 0 && <p>No request {requests.length === 0 ? 'has ended yet' : 'is like that'}.</p>}
    </>
  );
}

const COLUMNS = ['Request', 'Ended', 'Route', 'Tenant', 'Repository', 'Outcome', 'Context', 'Tokens', 'TTFT', 'Total'];

const wordsOf = ({ request_id, tenant = '', repo = '', code = '', route }: RequestBody) =>
  `${request_id} ${tenant} ${repo} ${code} ${route}`;

interface RowProps {
  readonly request: RequestBody;
  readonly isOpen: boolean;
  readonly onToggle: () => void;
}

function Row({ request, isOpen, onToggle }: RowProps) {
  const { request_id: id, ended_at, route, tenant, repo, status, code, rag, usage, timeline, replays } = request;
  const { prompt_tokens: prompt, completion_tokens: output, prompt_tokens_details: details } = usage;
  return (
    <>
      <tr>
        <th scope="row">
          <button type="button" class="row" aria-expanded={isOpen} aria-label={`Timeline of ${id}`} onClick={onToggle}>
            {id.slice(0, 8)}
          </button>
        </th>
        <td>
          <time dateTime={ended_at}>{new Date(ended_at).toLocaleTimeString()}</time>
        </td>
        <td>{route}</td>
        <td>{tenant ?? '–'}</td>
        <td>{repo ?? '–'}</td>
        <td class={code === undefined ? 'calm' : 'alarm'}>
          {status} {code}
          {replays > 0 && ` (${replays} replayed)`}
        </td>
        <td>
          {rag ? `${rag.mode}, ${rag.chunks} chunks` : '–'}
          {rag?.degraded && <span class="alarm"> {rag.degraded}</span>}
        </td>
        <td>
          {count(prompt)}
          {details.soft_tokens > 0 && ` (${details.soft_tokens} soft)`} → {count(output)}
        </td>
        <td>{ms(timeline['first_token'])}</td>
        <td>{ms(timeline['finished'])}</td>
      </tr>
      {isOpen && (
        <tr>
          <td colSpan={COLUMNS.length}>
            <Waterfall request={request} />
          </td>
        </tr>
      )}
    </>
  );
}

/** A bar of the waterfall, in ms since the request's body had come. */
interface Bar {
  readonly name: string;
  readonly worker: string;
  readonly from: number;
  readonly to: number;
  readonly kind: 'step' | 'call';
  readonly error?: string | undefined;
  readonly marks: readonly { readonly name: string; readonly at_ms: number }[];
}

/** The gateway's steps by its own events, and below them its waits and calls, in the order of their beginnings. */
function barsOf({ timeline, activities }: RequestBody): Bar[] {
  const steps = Object.entries(SPANS).flatMap(([name, [from, to]]): Bar[] => {
    const [start, end] = [timeline[from], timeline[to]];
    if (start === undefined || end === undefined) return [];
    return [{ name: STEP_WORDS[name as TimelineSpan], worker: '', from: start, to: end, kind: 'step', marks: [] }];
  });
  const finished = timeline['finished'] ?? 0;
  const calls = activities.map(({ name, worker = '', from_ms, to_ms, error, marks }): Bar => {
    return { name: CALL_WORDS[name] ?? name, worker, from: from_ms, to: to_ms ?? finished, kind: 'call', error, marks };
  });
  return [...steps, ...calls.toSorted((a, b) => a.from - b.from)];
}

const STEP_WORDS: Readonly<Record<TimelineSpan, string>> = {
  admit: 'admit',
  retrieve: 'retrieve chunks',
  tokenize: 'build the prompt',
  dispatch: 'wait for workers',
  first_token: 'to the first token',
  decode: 'first to last token',
};
const CALL_WORDS: Readonly<Record<string, string>> = {
  queue: 'queue',
  prefill: 'call of prefill',
  decode: 'call of decode',
  follow: 'read output of an earlier request',
};

function Waterfall({ request }: { readonly request: RequestBody }) {
  const { request_id, timeline, activities_left_out: leftOut } = request;
  if (timeline['received'] === undefined) return <p>It was refused before its body had been read.</p>;
  const bars = barsOf(request);
  const end = Math.max(timeline['finished'] ?? 0, ...bars.map(({ to }) => to), 0.001);
  const stages = STAGES.filter((stage) => timeline[`${stage}_ms`] !== undefined);
  return (
    <table class="waterfall">
      <caption>
        Timeline of <code>{request_id}</code>, 0 to {ms(end)} since its body had come
      </caption>
      <Head columns={COLUMNS} />
      <tbody>
        {bars.map((bar, i) => (
          <BarRow key={i} bar={bar} end={end} />
        ))}
      </tbody>
      <tfoot>
        <tr>
          <td colSpan={5}>
            By the workers' own clocks:{' '}
            {stages.length === 0
              ? 'nothing'
              : stages.map((stage) => `${stage.replaceAll('_', ' ')} ${ms(timeline[`${stage}_ms`])}`).join(', ')}
            {leftOut > 0 && `. ${leftOut} more waits and calls were not kept`}
          </td>
        </tr>
      </tfoot>
    </table>
  );
}

function BarRow({ bar, end }: { readonly bar: Bar; readonly end: number }) {
  const { name, worker, from, to, kind, error, marks } = bar;
  const percent = (at: number) => `${Math.min(100, Math.max(0, (100 * at) / end))}%`;
  return (
    <tr>
      <th scope="row">
        {name}
        {error && <span class="alarm"> {error}</span>}
      </th>
      <td>{worker}</td>
      <td>{ms(from)}</td>
      <td>{ms(to - from)}</td>
      <td class="bars">
        <div class={`bar ${kind}`} style={{ left: percent(from), width: percent(to - from) }} />
        {marks.map((mark) => (
          <span
            key={mark.name}
            class="mark"
            style={{ left: percent(mark.at_ms) }}
            title={`${mark.name.replaceAll('_', ' ')} at ${ms(mark.at_ms)}`}
          >
            <span class="unseen">
              {mark.name.replaceAll('_', ' ')} at {ms(mark.at_ms)}
            </span>
          </span>
        ))}
      </td>
    </tr>
  );
}
