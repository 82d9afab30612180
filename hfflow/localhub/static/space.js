// Follows a Space: its stage, its logs. Without it the page shows how things were when it was loaded.
const top_ = document.querySelector('[data-space]'), at = top_.dataset.space;
const state = top_.querySelector('[role=status]'), frame = top_.querySelector('iframe');

function follow(pre) {
  const source = new EventSource(`${at}/logs/${pre.dataset.log}`);
  let lines = [];
  source.onmessage = e => {
    lines = [...lines, JSON.parse(e.data).data].slice(-1000);
    const low = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 8;
    pre.textContent = lines.join('');
    if (low) pre.scrollTop = pre.scrollHeight;
  };
  source.onerror = () => source.close();  // the end of the log; look() begins again
  return source;
}

const pres = [...document.querySelectorAll('[data-log]')];
let open_ = pres.map(follow), last = state.textContent;

async function look() {
  const r = await fetch(`${at}/stage`).catch(() => null);
  if (!r || !r.ok) return;
  const { stage } = await r.json();
  if (stage === last) return;
  state.textContent = stage;
  state.className = `state ${stage.toLowerCase()}`;
  if (frame && stage === 'RUNNING' && last !== 'RUNNING_APP_STARTING') frame.src = frame.src;
  open_.forEach(s => s.close());
  open_ = pres.map(follow);
  last = stage;
}
setInterval(() => document.hidden || look(), 2000);
