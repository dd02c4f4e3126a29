/** The page around its four views: which is shown, the connection, the key, and light or dark. */
import type { ComponentChildren } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { duration } from './format.ts';
import { forgetKey, hasKey, storeKey } from './gateway.ts';
import { IndexView } from './index-view.tsx';
import { type Live, useLive } from './live.ts';
import { Overview } from './overview.tsx';
import { Playground } from './playground.tsx';
import { Requests } from './requests.tsx';
import { chooseTheme, theme } from './theme.ts';

const VIEWS = ['overview', 'requests', 'index', 'playground'] as const;
type View = (typeof VIEWS)[number];
const TITLES: Readonly<Record<View, string>> = {
  overview: 'Workers',
  requests: 'Requests',
  index: 'Index',
  playground: 'Playground',
};

function viewOf(hash: string): View {
  return VIEWS.find((view) => hash === `#${view}`) ?? 'overview';
}

function useView(): View {
  const [view, setView] = useState(() => viewOf(location.hash));
  useEffect(() => {
    const follow = () => setView(viewOf(location.hash));
    addEventListener('hashchange', follow);
    return () => removeEventListener('hashchange', follow);
  }, []);
  return view;
}

export function App() {
  const view = useView();
  const [attempt, setAttempt] = useState(0);
  const live = useLive(attempt);
  const unlock = (key: string) => {
    storeKey(key);
    setAttempt((count) => count + 1);
  };
  const lock = () => {
    forgetKey();
    setAttempt((count) => count + 1);
  };
  return (
    <>
      <button type="button" class="skip" onClick={() => document.getElementById('content')?.focus()}>
        Skip to content
      </button>
      <Header view={view} live={live} onLock={lock} />
      <main id="content" tabIndex={-1}>
        {live.needsKey ? <KeyForm problem={live.problem} onKey={unlock} /> : <Shown view={view} live={live} />}
      </main>
    </>
  );
}

/** Views stay as they were left: the playground keeps its text. */
function Shown({ view, live }: { readonly view: View; readonly live: Live }) {
  const panel = (name: View, children: ComponentChildren) => (
    <section hidden={view !== name} aria-label={TITLES[name]}>
      {children}
    </section>
  );
  return (
    <>
      {panel('overview', <Overview live={live} />)}
      {panel('requests', <Requests requests={live.requests} />)}
      {panel('index', <IndexView isShown={view === 'index'} />)}
      {panel('playground', <Playground isShown={view === 'playground'} />)}
    </>
  );
}

interface HeaderProps {
  readonly view: View;
  readonly live: Live;
  /** The key is to be forgotten. */
  readonly onLock: () => void;
}

function Header({ view, live, onLock }: HeaderProps) {
  const { state, problem } = live;
  return (
    <header>
      <h1>LlavaCode</h1>
      <nav aria-label="Views">
        {VIEWS.map((each) => (
          <a key={each} href={`#${each}`} aria-current={each === view ? 'page' : undefined}>
            {TITLES[each]}
          </a>
        ))}
      </nav>
      <p role="status" class={problem === undefined ? 'calm' : 'alarm'}>
        {problem ?? 'live'}
      </p>
      {state && <GatewayLine gateway={state.gateway} />}
      <p class="switches">
        {hasKey() && (
          <button type="button" onClick={onLock}>
            Forget the key
          </button>
        )}
        <ThemeSwitch />
      </p>
    </header>
  );
}

function GatewayLine({ gateway }: { readonly gateway: NonNullable<Live['state']>['gateway'] }) {
  const { name, version, model, fingerprint, uptime_s, gateways, problem, rollout } = gateway;
  return (
    <p class="gateway">
      gateway <b>{name}</b> {version}, up {duration(uptime_s)}, serves <b>{model}</b>{' '}
      <code title={fingerprint}>{fingerprint.slice(0, 12)}</code>
      {rollout !== 'none' && `, rollout: ${rollout}`}
      {gateways > 1 &&
        `. ${gateways} gateways share these workers: queue, requests and hand-overs are those of this one alone`}
      {problem !== null && <strong class="alarm">. Completions fail: {problem}</strong>}
    </p>
  );
}

function ThemeSwitch() {
  const [now, setNow] = useState(theme);
  const other = now === 'dark' ? 'light' : 'dark';
  const change = () => {
    chooseTheme(other);
    setNow(other);
  };
  return (
    <button type="button" onClick={change}>
      {other === 'dark' ? 'Dark' : 'Light'} colours
    </button>
  );
}

function KeyForm({ problem, onKey }: { readonly problem: string | undefined; readonly onKey: (key: string) => void }) {
  const [key, setKey] = useState('');
  const send = (event: Event) => {
    event.preventDefault();
    onKey(key.trim());
  };
  return (
    <form class="key" onSubmit={send}>
      <h2>A key is needed</h2>
      <p>
        This page shows what all tenants do. It takes a key whose entry in the file of keys says{' '}
        <code>"access": "admin"</code>. The key stays in this tab, until that is closed.
      </p>
      <label>
        Key
        <input
          type="password"
          autocomplete="off"
          value={key}
          onInput={({ currentTarget }) => setKey(currentTarget.value)}
        />
      </label>
      <button type="submit">Open</button>
      {problem && <p class="alarm">{problem}</p>}
    </form>
  );
}
