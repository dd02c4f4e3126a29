/**
 * What is indexed: repositories of the tenants that the file of keys names, their versions, how fresh they are, and
 * which files they lack.
 */
import { useEffect, useState } from 'preact/hooks';
import type { BrokenRepoBody, LeftOutBody, RepoBody, ReposBody } from '../services/gateway/http/admin-answers.ts';
import { ago, count } from './format.ts';
import { getJson } from './gateway.ts';
import { Head } from './head.tsx';

type Listed = RepoBody | BrokenRepoBody;

/** The list is read when the view is opened, and again on request: it changes with index runs alone. */
export function IndexView({ isShown }: { readonly isShown: boolean }) {
  const [repos, setRepos] = useState<readonly Listed[]>();
  const [next, setNext] = useState<string | null>(null);
  const [problem, setProblem] = useState<string>();
  const [open, setOpen] = useState<string>();
  const load = async (after: string | null, signal: AbortSignal) => {
    try {
      const page = await getJson<ReposBody>(`api/repos?after=${encodeURIComponent(after ?? '')}`, signal);
      setRepos((before) => [...(after === null ? [] : (before ?? [])), ...page.data]);
      setNext(page.next);
      setProblem(undefined);
    } catch (error) {
      // The view was left; a gateway that does not answer in time is another matter.
      if ((error as Error).name !== 'AbortError') setProblem((error as Error).message);
    }
  };
  useEffect(() => {
    if (!isShown) return undefined;
    const gone = new AbortController();
    void load(null, gone.signal);
    return () => gone.abort();
  }, [isShown]);
  const again = (after: string | null) => void load(after, AbortSignal.timeout(30_000));
  return (
    <>
      <p>
        <button type="button" onClick={() => again(null)}>
          Read again
        </button>
      </p>
      {problem && <p class="alarm">{problem}</p>}
      {repos?.length === 0 && <p>Nothing is indexed.</p>}
      {repos !== undefined && repos.length > 0 && (
        <div class="wide">
          <table>
            <caption>Repositories that have an index, of the tenants that have keys</caption>
            <Head columns={COLUMNS} />
            <tbody>
              {repos.map((repo) => {
                const name = `${repo.tenant} ${repo.repo}`;
                const toggle = () => setOpen(open === name ? undefined : name);
                return <RepoRow key={name} repo={repo} isOpen={open === name} onToggle={toggle} />;
              })}
            </tbody>
          </table>
        </div>
      )}
      {next !== null && (
        <button type="button" onClick={() => again(next)}>
          More repositories
        </button>
      )}
    </>
  );
}

const COLUMNS = ['Repository', 'Tenant', 'Version', 'Indexed', 'State', 'Chunks', 'Files', 'Languages', 'Left out'];

interface RepoRowProps {
  readonly repo: Listed;
  readonly isOpen: boolean;
  readonly onToggle: () => void;
}

function RepoRow({ repo, isOpen, onToggle }: RepoRowProps) {
  if ('error' in repo) {
    return (
      <tr>
        <th scope="row">{repo.repo}</th>
        <td>{repo.tenant}</td>
        <td colSpan={COLUMNS.length - 2} class="alarm">
          {repo.error.code}: {repo.error.message}
        </td>
      </tr>
    );
  }
  const languages = Object.entries(repo.languages).toSorted(([, a], [, b]) => b - a);
  return (
    <>
      <tr>
        <th scope="row">{repo.repo}</th>
        <td>{repo.tenant}</td>
        <td>
          <code>{repo.version}</code>
        </td>
        <td>
          <time dateTime={repo.updated_at} title={repo.updated_at}>
            {ago(repo.updated_at)}
          </time>
        </td>
        <td class={repo.stale ? 'alarm' : 'calm'}>
          {repo.stale ? 'stale: it has no vectors of the served encoder and projector; index it again' : 'fresh'}
        </td>
        <td>{count(repo.chunks)}</td>
        <td>{count(repo.files)}</td>
        <td>{languages.map(([language, files]) => `${language} ${files}`).join(', ')}</td>
        <td>
          <button
            type="button"
            class="row"
            aria-expanded={isOpen}
            aria-label={`Files that ${repo.repo} leaves out`}
            onClick={onToggle}
          >
            why?
          </button>
        </td>
      </tr>
      {isOpen && (
        <tr>
          <td colSpan={COLUMNS.length}>
            <LeftOut tenant={repo.tenant} repo={repo.repo} />
          </td>
        </tr>
      )}
    </>
  );
}

/** In words: why a file is not in the index. */
const REASONS: Readonly<Record<string, string>> = {
  ignored: '.gitignore excludes it, or its name or folder begins with a dot, or it lies in node_modules',
  symlink: 'it is a symbolic link',
  special: 'it is a device, a pipe, a socket or a hard link',
  oversize: 'it is larger than --max-file-bytes',
  binary: 'it holds a NUL byte, so it is no text',
  invalid_utf8: 'its content or its name is not UTF-8',
  odd_name: 'its name holds a control character or a backslash',
  generated: 'a tool wrote it, or it is minified, or a lock file',
  dependency: 'it lies in a virtual environment or among installed packages',
  notebook: 'the outputs and prose of a notebook are left out, or the notebook cannot be parsed',
  unreadable: 'it could not be read; what was indexed of it before is kept',
};

function LeftOut({ tenant, repo }: { readonly tenant: string; readonly repo: string }) {
  const [body, setBody] = useState<LeftOutBody>();
  const [problem, setProblem] = useState<string>();
  const [wanted, setWanted] = useState('');
  useEffect(() => {
    const gone = new AbortController();
    const query = new URLSearchParams({ tenant, repo });
    getJson<LeftOutBody>(`api/left-out?${query}`, gone.signal).then(setBody, (error: Error) => {
      if (!gone.signal.aborted) setProblem(error.message);
    });
    return () => gone.abort();
  }, [tenant, repo]);
  if (problem !== undefined) return <p class="alarm">{problem}</p>;
  if (body === undefined) return <p>Reading…</p>;
  if (body.counts === null) {
    return <p>Not known: this index was made by an earlier release. It is kept from the next index run on.</p>;
  }
  const counts = Object.entries(body.counts);
  const shown = body.files.filter(({ path }) => path.includes(wanted));
  const named = body.files.length;
  const all = counts.reduce((sum, [, number]) => sum + number, 0);
  return (
    <div class="left-out">
      {counts.length === 0 && <p>Nothing was left out.</p>}
      <ul>
        {counts.map(([reason, number]) => (
          <li key={reason}>
            <b>{count(number)}</b> {reason}: {REASONS[reason] ?? 'see the documentation of indexing'}
          </li>
        ))}
      </ul>
      {named > 0 && (
        <>
          <label>
            Which file do you miss?
            <input
              type="search"
              value={wanted}
              onInput={({ currentTarget }) => setWanted(currentTarget.value.trim())}
            />
          </label>
          <ul class="files">
            {shown.map(({ path, reason }) => (
              <li key={`${path} ${reason}`}>
                <code>{path}</code> <span title={REASONS[reason]}>{reason}</span>
              </li>
            ))}
          </ul>
          {shown.length === 0 && <p>No file that was left out is called so.</p>}
          {all > named && <p>{count(all - named)} more are counted above and not named.</p>}
        </>
      )}
    </div>
  );
}
