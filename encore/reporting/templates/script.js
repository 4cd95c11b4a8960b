// One sound at a time: starting a player pauses the others. A line in the spectrogram shows where it is; a click moves it.
const players = [...document.querySelectorAll("audio")];
for (const player of players) {
  player.addEventListener("play", () => players.forEach((other) => other === player || other.pause()));
  const picture = player.parentElement.querySelector(".spectrogram");
  if (!picture) continue;
  const line = picture.querySelector("i"), from = +picture.dataset.from, to = +picture.dataset.to;
  const show = () => {
    line.hidden = player.currentTime === 0;
    line.style.left = 100 * (from + ((to - from) * player.currentTime) / player.duration) + "%";
    if (!player.paused) requestAnimationFrame(show);
  };
  for (const event of ["play", "seeked", "pause"]) player.addEventListener(event, show);
  picture.addEventListener("click", (event) => {
    const place = (event.offsetX / picture.clientWidth - from) / (to - from);
    player.currentTime = Math.min(1, Math.max(0, place)) * player.duration;
    player.play();
  });
}
