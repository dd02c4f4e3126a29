/**
 * Three arms of one cursor, side by side: without context, with the chunks as text, and with the same chunks as soft
 * tokens. They are completed by the public API with the key of this page: repositories are those of its tenant.
 */
import { useEffect, useRef, useState } from 'preact/hooks';
import { SAMPLE, SAMPLE_BODY, SAMPLE_REPO } from '../services/sample.ts';
import { count, median, ms } from './format.ts';
import { type ContextMode, complete, getJson, type Played } from './gateway.ts';

const ARMS: readonly { readonly mode: ContextMode; readonly title: string }[] = [
  { mode: 'off', title: 'Without context' },
  { mode: 'text', title: 'Chunks as text' },
  { mode: 'compressed', title: 'Chunks as soft tokens' },
];
/** Most runs of each arm. */
const MOST_RUNS = 20;
/** A run that takes longer is given up, in ms. */
const DEADLINE_MS = 60_000;

interface Asked {
  readonly repo: string;
  readonly path: string;
  readonly before: string;
  readonly after: string;
  readonly maxTokens: number;
  readonly oneLine: boolean;
}

interface Result {
  readonly runs: readonly Played[];
  readonly problem: string | undefined;
}

const bodyOf = ({ repo, path, before, after, maxTokens, oneLine }: Asked, mode: ContextMode, salt: string) => ({
  prompt: before,
  ...(after.trim() !== '' && { suffix: after }),
  max_tokens: maxTokens,
  temperature: 0,
  ...(oneLine && { stop: SAMPLE_BODY.stop }),
  // A salt of its own makes each prompt a new one: nothing of the KV cache of the run before is reused.
  cache_salt: salt,
  rag: { repo, mode, ...(path !== '' && { path }) },
});

export function Playground({ isShown }: { readonly isShown: boolean }) {
  const repos = useRepos(isShown);
  const code = useRef<HTMLTextAreaElement>(null);
  const [repo, setRepo] = useState('');
  const [path, setPath] = useState('');
  const [maxTokens, setMaxTokens] = useState(24);
  const [runs, setRuns] = useState(3);
  const [oneLine, setOneLine] = useState(true);
  const [cursor, setCursor] = useState('line 1, column 1');
  const play = usePlay();
  const chosen = repo || (repos[0] ?? '');
  const followCaret = () => setCursor(caretOf(code.current!));
  const fillSample = () => {
    const area = code.current!;
    area.value = SAMPLE.before;
    area.setSelectionRange(area.value.length, area.value.length);
    setRepo(SAMPLE_REPO);
    setPath(SAMPLE.path);
    followCaret();
  };
  const run = (event: Event) => {
    event.preventDefault();
    const { value, selectionEnd } = code.current!;
    const [before, after] = [value.slice(0, selectionEnd), value.slice(selectionEnd)];
    void play.start({ repo: chosen, path, before, after, maxTokens, oneLine }, runs);
  };
  return (
    <>
      <form class="play" onSubmit={run}>
        <div class="fields">
          <label>
            Repository
            <select value={chosen} onChange={({ currentTarget }) => setRepo(currentTarget.value)}>
              {repos.map((name) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          </label>
          <label>
            Path of the file
            <input value={path} onInput={({ currentTarget }) => setPath(currentTarget.value)} />
          </label>
          <NumberField name="Most tokens" value={maxTokens} most={512} onValue={setMaxTokens} />
          <NumberField name="Runs of each" value={runs} most={MOST_RUNS} onValue={setRuns} />
          <label class="check">
            <input type="checkbox" checked={oneLine} onChange={() => setOneLine(!oneLine)} /> one line
          </label>
        </div>
        <label>
          Code, completed where the caret stands ({cursor})
          <textarea
            ref={code}
            rows={12}
            spellcheck={false}
            required
            onInput={followCaret}
            onKeyUp={followCaret}
            onClick={followCaret}
          />
        </label>
        <p class="buttons">
          <button type="submit" disabled={play.isRunning || chosen === ''}>
            Complete in three modes
          </button>
          {play.isRunning && (
            <button type="button" onClick={play.stop}>
              Stop
            </button>
          )}
          {repos.includes(SAMPLE_REPO) && (
            <button type="button" onClick={fillSample}>
              Take the sample
            </button>
          )}
          <span role="status">{play.progress}</span>
        </p>
        {repos.length === 0 && <p>The tenant of this key has no repository that is indexed.</p>}
      </form>
      <div class="arms">
        {ARMS.map(({ mode, title }) => (
          <Arm key={mode} title={title} result={play.results.get(mode)} />
        ))}
      </div>
    </>
  );
}

interface NumberFieldProps {
  readonly name: string;
  readonly value: number;
  readonly most: number;
  readonly onValue: (value: number) => void;
}

function NumberField({ name, value, most, onValue }: NumberFieldProps) {
  const take = ({ currentTarget: { valueAsNumber } }: { readonly currentTarget: HTMLInputElement }) => {
    if (valueAsNumber >= 1 && valueAsNumber <= most) onValue(Math.floor(valueAsNumber));
  };
  return (
    <label>
      {name}
      <input type="number" min={1} max={most} value={value} onInput={take} />
    </label>
  );
}

function caretOf({ value, selectionEnd }: HTMLTextAreaElement): string {
  const lines = value.slice(0, selectionEnd).split('\n');
  return `line ${lines.length}, column ${lines.at(-1)!.length + 1}`;
}

/** Names of the repositories that the page's key may use. */
function useRepos(isShown: boolean): readonly string[] {
  const [repos, setRepos] = useState<readonly string[]>([]);
  useEffect(() => {
    if (!isShown) return undefined;
    const gone = new AbortController();
    getJson<{ data: readonly { repo: string }[] }>('../v1/repos', gone.signal).then(
      ({ data }) => setRepos(data.map(({ repo }) => repo)),
      () => {}, // the list stays as it is; a run says what is wrong
    );
    return () => gone.abort();
  }, [isShown]);
  return repos;
}

/** Runs the arms. They take turns, so that a disturbance meets all of them. */
function usePlay() {
  const [results, setResults] = useState<ReadonlyMap<ContextMode, Result>>(new Map());
  const [progress, setProgress] = useState('');
  const [running, setRunning] = useState<AbortController>();
  const start = async (asked: Asked, runs: number) => {
    const stop = new AbortController();
    const found = new Map<ContextMode, Result>(ARMS.map(({ mode }) => [mode, { runs: [], problem: undefined }]));
    setRunning(stop);
    setResults(new Map(found));
    for (let run = 0; run < runs && !stop.signal.aborted; run++) {
      for (const { mode } of ARMS) {
        const before = found.get(mode)!;
        if (stop.signal.aborted || before.problem !== undefined) continue;
        setProgress(`run ${run + 1} of ${runs}`);
        found.set(mode, await playOnce(before, bodyOf(asked, mode, crypto.randomUUID()), stop.signal));
        setResults(new Map(found));
      }
    }
    setProgress(stop.signal.aborted ? 'stopped' : 'done');
    setRunning(undefined);
  };
  return { results, progress, isRunning: running !== undefined, start, stop: () => running?.abort() };
}

async function playOnce(before: Result, body: object, stop: AbortSignal): Promise<Result> {
  try {
    const played = await complete(body, AbortSignal.any([stop, AbortSignal.timeout(DEADLINE_MS)]));
    return { runs: [...before.runs, played], problem: undefined };
  } catch (error) {
    return stop.aborted ? before : { ...before, problem: (error as Error).message };
  }
}

function Arm({ title, result }: { readonly title: string; readonly result: Result | undefined }) {
  const last = result?.runs.at(-1);
  return (
    <article>
      <h2>{title}</h2>
      {result?.problem !== undefined && <p class="alarm">{result.problem}</p>}
      {last === undefined ? (
        result?.problem === undefined && <p>Not run yet.</p>
      ) : (
        <>
          <pre class="answer">{last.text}</pre>
          <ArmFigures runs={result!.runs} last={last} />
          {last.degraded && <p class="alarm">context: {last.degraded}</p>}
          <h3>{count(last.chunks.length)} chunks</h3>
          <ol class="chunks">
            {last.chunks.map(({ path, start_line: from, end_line: to, score }) => (
              <li key={`${path} ${from}`}>
                <code>
                  {path}:{from}-{to}
                </code>{' '}
                {score.toFixed(3)}
              </li>
            ))}
          </ol>
        </>
      )}
    </article>
  );
}

function ArmFigures({ runs, last }: { readonly runs: readonly Played[]; readonly last: Played }) {
  const ttfts = runs.map(({ ttftMs }) => ttftMs);
  const tpots = runs.flatMap(({ tpotMs }) => tpotMs ?? []);
  const spread = runs.length > 1 ? ` (${ms(Math.min(...ttfts))} to ${ms(Math.max(...ttfts))})` : '';
  return (
    <dl>
      <dt>TTFT</dt>
      <dd>
        {ms(median(ttfts))}
        {spread}, {runs.length === 1 ? 'one run' : `median of ${runs.length} runs`}
      </dd>
      <dt>TPOT</dt>
      <dd>{ms(median(tpots))}</dd>
      <dt>Prompt tokens</dt>
      <dd>
        {count(last.promptTokens)}
        {last.softTokens > 0 && `, ${last.softTokens} of them soft`}
      </dd>
      <dt>Output tokens</dt>
      <dd>{count(last.completionTokens)}</dd>
    </dl>
  );
}
